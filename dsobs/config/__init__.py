"""Settings: one YAML file, `DSOBS_*` environment over it, flags over those."""

from dsobs.config.checks import Finding, unready
from dsobs.config.duration import format_duration, parse_duration
from dsobs.config.load import CONFIG_VARIABLE, SHORTHANDS, Loaded, load, load_with_origins
from dsobs.config.models import Config, Coordination, Mode, ProbeMode
from dsobs.config.problem import ConfigError, Problem, ReloadError
from dsobs.config.secret import Secret, SecretError

__all__ = [
    "CONFIG_VARIABLE",
    "SHORTHANDS",
    "Config",
    "ConfigError",
    "Coordination",
    "Finding",
    "Loaded",
    "Mode",
    "ProbeMode",
    "Problem",
    "ReloadError",
    "Secret",
    "SecretError",
    "format_duration",
    "load",
    "load_with_origins",
    "parse_duration",
    "unready",
]
