"""`dsobs replay`: a recorded incident in virtual time."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsobs.cli.exit_codes import ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_error, print_json
from dsobs.cli.own_log import configure_logging


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "replay",
        help="run rules and planning over a recording",
        description="Runs parsing, rules and planning over a recording (a flight recorder's file, or one made by "
        "`dsobs record`) in virtual time and prints what would have been alerted, paged and done, as in enforce mode. "
        "There is no probe in a replay. Records that are out of order are left out, and said.",
    )
    parser.add_argument("file", type=Path, nargs="+", help="recording, JSON lines, gzip'ed or not; several in order")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 if records were left out, or a file has none to replay; 2 if a file is no recording."""
    from dsobs.config import ConfigError
    from dsobs.recorder.records import RecordError
    from dsobs.replay import SAYS_SOMETHING, Replay, is_usable
    from dsobs.rules import RuleFileError

    config = load_config(args)
    configure_logging(config.log.model_copy(update={"level": "error"}))
    found: dict[Path, tuple[int, int]] = {}  # Records, and those among them that say something.

    def read() -> Iterator[dict[str, Any]]:
        for path in args.file:
            count = usable = 0
            found[path] = (0, 0)
            for record in _records(path):
                count, usable = count + 1, usable + is_usable(record)
                found[path] = (count, usable)
                yield record

    try:
        replay = Replay(config)
        for event in replay.run(read()):
            if args.json:
                print_json(event)
            else:
                print(_line(event))
        sys.stdout.flush()
    except (ConfigError, RuleFileError) as error:
        for problem in error.problems:
            print_error(f"{problem}")
        return ExitCode.USAGE
    except RecordError as error:
        print_error(f"{error}")
        return ExitCode.USAGE
    names = ", ".join(f"`{name}`" for name in SAYS_SOMETHING)
    empty = [(path, count) for path, (count, usable) in found.items() if not usable]
    for path, count in empty:
        lacks = f"none of its {count} records has any of {names}" if count else "it holds no record"
        print_error(f"{path}: nothing to replay: {lacks}; `dsobs record` makes a recording")
    if empty:
        return ExitCode.FAILED
    if replay.out_of_order:
        print_error(
            f"{replay.out_of_order} records are older than the one before them and were left out; "
            "give the files in order of time, and sort what was put together by hand"
        )
        return ExitCode.FAILED
    return 0


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Of a file; RecordError where it can't be read. What goes wrong with the output is none of it."""
    from dsobs.recorder.records import RecordError, read_records

    try:
        yield from read_records(path)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from error


def _line(event: dict[str, object]) -> str:
    if event["kind"] == "end":
        return f"{event['t']:>9} s  end     {event['samples']} samples"
    text = event.get("reason") or ""
    annotations = event.get("annotations")
    if isinstance(annotations, dict):
        text = text or annotations.get("summary", "")
    return (
        f"{event['t']:>9} s  {event['kind']:<7} {event['name']:<24} {event['state']:<9} {event['severity']:<8} {text}"
    )
