"""Settings: one YAML file, `DSOBS_*` environment over it, flags over those."""

from dsobs.config.duration import format_duration, parse_duration
from dsobs.config.models import Config, Coordination, Mode, ProbeMode
from dsobs.config.secret import Secret, SecretError

__all__ = [
    "Config",
    "Coordination",
    "Mode",
    "ProbeMode",
    "Secret",
    "SecretError",
    "format_duration",
    "parse_duration",
]
