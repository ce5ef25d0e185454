"""`dsobs replay`: a recorded incident in virtual time."""

import argparse
import sys
from pathlib import Path


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "replay",
        help="run rules and planning over a recording",
        description="Runs parsing, rules and planning over a recording (a flight recorder's file, or one made by "
        "`dsobs record`) in virtual time and prints what would have been alerted, paged and done, as in enforce mode. "
        "There is no probe in a replay.",
    )
    parser.add_argument("file", type=Path, nargs="+", help="recording, JSON lines, gzip'ed or not; several in order")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    settings.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 2 if a file is no recording."""
    import orjson

    from dsobs.recorder.records import RecordError, read_records
    from dsobs.replay import Replay

    config = settings.load(args)
    logs.configure(config.log.model_copy(update={"level": "error"}))
    records = (record for path in args.file for record in read_records(path))
    try:
        for event in Replay(config).run(records):
            if args.json:
                sys.stdout.buffer.write(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS))
            else:
                print(_line(event))
        sys.stdout.flush()
    except RecordError as error:
        print(f"dsobs replay: {error}", file=sys.stderr)
        return exit_codes.USAGE
    except OSError as error:
        print(f"dsobs replay: {error.filename}: {error.strerror}", file=sys.stderr)
        return exit_codes.USAGE
    return 0


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
