"""dsobs: sees, tells and repairs beside an LLM inference server."""

__version__ = "0.1.0"
