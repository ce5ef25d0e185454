"""dsobs beside one engine."""

from dsobs.sidecar.main import Sidecar

__all__ = ["Sidecar"]
