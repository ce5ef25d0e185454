"""`dsobs record`: a recording of a live server, for `dsobs replay`."""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

from dsobs.cli.exit_codes import ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_error


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "record",
        help="record a live server for replay",
        description="Reads a server's metrics, /health and GPU once a second into a file that `dsobs replay` reads. "
        "Changes nothing on the server.",
    )
    parser.add_argument("file", type=Path, help="file to write, gzip'ed JSON lines (name.jsonl.gz)")
    parser.add_argument("--duration", default="5m", help="how long, such as 90s or 5m; Ctrl-C ends it early")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 2 for a bad duration or a file that can't be written; 3 if the server never answered."""
    from dsobs.config import parse_duration
    from dsobs.record import record

    try:
        seconds = parse_duration(args.duration)
        assert isinstance(seconds, float | int)
    except ValueError as error:
        print_error(f"--duration: {error}")
        return ExitCode.USAGE
    config = load_config(args)
    told = sys.stderr if sys.stderr.isatty() else None
    answered = 0
    with contextlib.suppress(KeyboardInterrupt):
        try:
            answered = asyncio.run(record(config, args.file, float(seconds), told))
        except OSError as error:
            print_error(f"{args.file}: {error.strerror or error}")
            return ExitCode.USAGE
    print(f"{args.file}: {answered} scrapes answered", file=sys.stderr)
    return 0 if answered else ExitCode.UNREACHABLE
