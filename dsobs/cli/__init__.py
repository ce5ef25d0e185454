"""The `dsobs` command.

Each command is a module of this package with `add_parser(subparsers)`, which sets the default `run` to a function from
the parsed arguments to an exit status. Modules import what is heavy inside that function.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from dsobs.cli.exit_codes import CommandError, ExitCode

COMMANDS = (
    "run",
    "status",
    "supervise",
    "demo",
    "config",
    "replay",
    "record",
    "incidents",
    "silence",
    "gpu",
    "notify",
    "rules",
    "logs",
    "k8s",
)
"""Modules of this package, in the order of `dsobs --help`."""


class _Version(argparse.Action):
    """Prints the version; it is looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"dsobs {version('dsobs')}")
        parser.exit()


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of these commands; only their modules are imported."""
    parser = argparse.ArgumentParser(
        prog="dsobs", description="Sees, tells and repairs beside an LLM inference server.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name in commands:
        importlib.import_module(f"dsobs.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status (`dsobs.cli.exit_codes`); the entry point of the console script.

    What the user can mend is one line each on stderr; an error of dsobs itself ends in a traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["supervise"]:
        # The words belong to the engine's command; the supervisor reads them itself.
        from dsobs.supervisor.command import supervise

        return supervise(words[1:])
    try:
        # One command needs no other's imports, and the version none at all.
        needed = () if words == ["--version"] else tuple(words[:1]) if words and words[0] in COMMANDS else COMMANDS
        args = build_parser(needed).parse_args(words)
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.DONE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.PIPE_CLOSED
    except CommandError as error:
        print(f"dsobs: {error}", file=sys.stderr)
        return error.code
