"""dsobs: sees, tells and repairs beside an LLM inference server."""
