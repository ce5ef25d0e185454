"""One file per engine: its metrics page to the canonical signals, and its one-token request."""
