"""The status page: written by the sidecar, kept up to date by server-sent events, read-only."""
