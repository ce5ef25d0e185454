"""Flags that several commands share, and the configuration they give."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dsobs.cli.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from dsobs.config import Config, Loaded

# Flag, how argparse names it, placeholder, help. What each sets stands in dsobs.config.SHORTHANDS.
_SHORTHANDS = (
    ("--url", "url", "URL", "the inference server (target.url)"),
    ("--mode", "mode", "MODE", "observe or enforce (remediation.mode)"),
    ("--listen", "listen", "ADDRESS:PORT", "where dsobs serves (api.listen)"),
    ("--state-dir", "state_dir", "DIR", "what is kept on disk (state.directory)"),
    ("--log-format", "log_format", "FORMAT", "auto, text or json (log.format)"),
)


def add_config_options(parser: argparse.ArgumentParser, *, shorthands: bool = True) -> None:
    """`--config`, `--set`, and where `shorthands` the flags for settings that are often given by hand."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings file (else the variable DSOBS_CONFIG)")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        dest="settings",
        help="a setting, as target.url=http://127.0.0.1:8000; may be repeated",
    )
    if shorthands:
        for flag, name, metavar, text in _SHORTHANDS:
            parser.add_argument(flag, dest=f"setting_{name}", metavar=metavar, help=text)


def natural(text: str) -> int:
    """A whole number from 0 on, as `type` of an argument."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def load_config(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> "Config":
    """The configuration that `args` of `add_config_options` and the environment give.

    CommandError with one line for each problem where it can't be used.
    """
    return load_with_origins(args, environ).config


def load_with_origins(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> "Loaded":
    """The same, with where each value was written."""
    from dsobs.config import ConfigError

    try:
        return read_config(args, environ)
    except ConfigError as error:
        raise CommandError("\ndsobs: ".join(map(str, error.problems)), ExitCode.USAGE) from None


def read_config(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> "Loaded":
    """The same; ConfigError as the loader raises it."""
    from dsobs.config import load_with_origins

    environ = os.environ if environ is None else environ
    return load_with_origins(config_file(args, environ), environ, _overrides(args))


def config_file(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Path | None:
    """The settings file that is read, if there is one."""
    from dsobs.config import CONFIG_VARIABLE

    environ = os.environ if environ is None else environ
    path: Path | None = args.config
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    return path


def _overrides(args: argparse.Namespace) -> dict[str, str]:
    overrides = {}
    for flag, name, _, _ in _SHORTHANDS:
        value = getattr(args, f"setting_{name}", None)
        if value is not None:
            overrides[flag] = value
    for item in args.settings:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise CommandError("--set takes NAME=VALUE, such as target.url=http://127.0.0.1:8000", ExitCode.USAGE)
        overrides[name.strip()] = value
    return overrides
