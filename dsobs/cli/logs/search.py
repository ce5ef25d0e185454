"""`dsobs logs search`: records that the file sink wrote, for those who have no Elasticsearch."""

import argparse
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.options import add_config_options, load_config, natural
from dsobs.cli.output import print_error, printable

if TYPE_CHECKING:
    from dsobs.logs.search import Question

LIMIT = 200
_LEVELS = ("trace", "debug", "info", "warning", "error", "critical")
_COLOURS = {"warning": "33", "error": "31", "critical": "31;1"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "search",
        help="find records in the file that dsobs writes",
        description="Finds records in the files of the file sink (logs.file.path) or in FILEs of its form, oldest "
        "first. All that is asked for must hold. Exit code 1: there are none.",
    )
    parser.add_argument("text", nargs="*", help="text that stands in some value of the record")
    parser.add_argument("-i", "--ignore-case", action="store_true", help="for texts and values")
    parser.add_argument("--since", metavar="TIME", help="2026-11-24T08:00:00Z, or so long ago: 15m")
    parser.add_argument("--until", metavar="TIME", help="the same")
    parser.add_argument("--level", choices=_LEVELS, default="", help="this level and those above it")
    parser.add_argument(
        "--field", metavar="NAME=VALUE", action="append", default=[], help="a field by its dotted name; may be repeated"
    )
    parser.add_argument("--incident", metavar="ID", help="records of an incident (`dsobs incidents`), or its beginning")
    parser.add_argument(
        "--before",
        metavar="TIME",
        default="60s",
        help="with --incident: show everything from so long before its first record to its last (60s); 0: only "
        "records with the incident's id",
    )
    parser.add_argument(
        "--limit", type=natural, metavar="N", help=f"the newest N; 0: all (default: {LIMIT}, with --json all)"
    )
    parser.add_argument("--file", type=Path, metavar="FILE", action="append", default=[], help="look there instead")
    parser.add_argument("--json", action="store_true", help="the records as they stand, one a line")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 if something was found, 1 if not, 2 if there is nothing to look in."""
    from dsobs.logs.search import sink_files
    from dsobs.logs.sinks import records_path

    config = load_config(args)
    path = records_path(config.logs, config.state.directory / "logs")
    files = args.file or sink_files(path)
    if not files:
        print_error(f"{path} is not there; set logs.file.path or --state-dir to that of `dsobs run`, or give --file")
        return ExitCode.USAGE
    try:
        return _show(args, _found(args, files))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise CommandError(f"{error.filename}: {error.strerror}", ExitCode.USAGE) from None


def _question(args: argparse.Namespace, now: float) -> "Question":
    from dsobs.logs.search import Question

    fields = []
    for text in args.field:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CommandError("--field takes NAME=VALUE, such as log.level=error", ExitCode.USAGE)
        fields.append((name, value))
    return Question(
        since=_moment("--since", args.since, now),
        until=_moment("--until", args.until, now),
        level=args.level,
        texts=tuple(args.text),
        ignore_case=args.ignore_case,
        fields=tuple(fields),
    )


def _moment(flag: str, text: str | None, now: float) -> float | None:
    """Unix seconds; a number with a unit is so long before `now`."""
    if text is None:
        return None
    if re.fullmatch(r"\d{4}-.*", text):
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    return now - _seconds(flag, text)


def _seconds(flag: str, text: str) -> float:
    from dsobs.config.duration import parse_duration

    try:
        return float(parse_duration(text))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise CommandError(
            f"{flag} takes a time such as 15m, 2h or 2026-11-24T08:00:00Z, not {text!r}", ExitCode.USAGE
        ) from None


def _found(args: argparse.Namespace, files: list[Path]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    from dsobs.logs.search import INCIDENT, about_incident, find, in_range, value_of

    question = _question(args, time.time())
    if args.incident is None:
        yield from find(files, question)
        return
    before = _seconds("--before", args.before)
    span = about_incident(files, args.incident, before)
    if span is None:
        return
    for line, document in find(files, in_range(question, span)):
        id_ = value_of(document, INCIDENT)
        if str(id_ or "").startswith(args.incident) or (before and id_ is None):
            yield line, document


def _show(args: argparse.Namespace, found: Iterator[tuple[bytes, dict[str, Any]]]) -> int:
    limit = args.limit if args.limit is not None else (0 if args.json else LIMIT)
    count = 0
    kept: deque[tuple[bytes, dict[str, Any]]] = deque(maxlen=limit or None)
    for count, one in enumerate(found, 1):  # noqa: B007
        if args.json and not limit:
            sys.stdout.buffer.write(one[0] + b"\n")
        else:
            kept.append(one)
    if args.json:
        sys.stdout.buffer.writelines(line + b"\n" for line, _ in kept)
        sys.stdout.buffer.flush()
    else:
        _table([document for _, document in kept])
    if not count:
        print_error("no record fits")
        return ExitCode.FAILED
    if 0 < limit < count:
        print_error(f"{count - limit} earlier records are left out; --limit 0 shows all")
    return ExitCode.DONE


def _table(documents: list[dict[str, Any]]) -> None:
    """In the order of time; colours at a terminal."""
    from dsobs.logs.search import level_of, time_of

    documents.sort(key=lambda document: time_of(document) or 0.0)
    colour = sys.stdout.isatty()
    for document in documents:
        level = level_of(document)
        mark = _COLOURS.get(level, "") if colour else ""
        line = f"{_time(time_of(document))}  {level:<8}  {_kind(document):<10}  {_message(document)}".rstrip()
        print(f"\x1b[{mark}m{line}\x1b[0m" if mark else line)


def _time(at: float | None) -> str:
    if at is None:
        return f"{'-':<23}"
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="milliseconds")[:23]


def _kind(document: dict[str, Any]) -> str:
    """`vllm` of `logs-dsobs.vllm-default`, or the index."""
    index = str(document.get("_index", ""))
    match = re.fullmatch(r"logs-dsobs\.([^-]+)-.*", index)
    return printable(match[1] if match else index)


def _message(document: dict[str, Any]) -> str:
    from dsobs.logs.search import value_of

    for name in ("message", "error.message", "event.action"):
        said = value_of(document, name)
        if said is not None:
            return printable(str(said))
    rest = {name: value for name, value in document.items() if name not in ("_id", "_index", "@timestamp")}
    return printable(" ".join(f"{name}={value}" for name, value in rest.items()))
