"""`dsobs incidents [ID]`: what happened and what was done, from the ledger."""

import argparse
from datetime import UTC, datetime
from typing import Any

from dsobs.cli.exit_codes import ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_error, print_json, print_table


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "incidents",
        help="list incidents, or one as a timeline",
        description="Lists the incidents in the ledger, newest first, or prints one as a timeline. Reads the state "
        "folder; dsobs need not be running.",
    )
    parser.add_argument("id", nargs="?", default="", help="an incident's id or its beginning")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 if there is no such incident; 2 if there is no ledger."""
    from dsobs.remediation import ledger
    from dsobs.state import StateError, read_only

    config = load_config(args)
    path = config.state.directory / "state.db"
    try:
        with read_only(path) as connection:
            entries = ledger.of_incident(connection, args.id)
    except StateError as error:
        print_error(f"{error}; set state.directory (--state-dir) to that of `dsobs run`")
        return ExitCode.USAGE
    found = ledger.by_incident(entries)
    if args.id and not found:
        print_error(f"no incident begins with {args.id!r}")
        return ExitCode.FAILED
    if args.json:
        for incident in found:
            print_json(incident)
    elif args.id:
        for incident in found:
            _timeline(incident)
    else:
        print_table(
            ("incident", "alerts", "state", "last"),
            [
                (i["id"], ", ".join(i["alerts"]), "closed" if i["closed"] else "open", _what(i["entries"][-1]))
                for i in found
            ],
        )
    return 0


def _what(entry: dict[str, Any]) -> str:
    from dsobs.remediation import ledger

    reason = ledger.said(entry["detail"])
    return f"{entry['kind']} {entry['state']}" + (f": {reason}" if reason else "")


def _timeline(incident: dict[str, Any]) -> None:
    opened = incident["opened_at"]
    begun = datetime.fromtimestamp(opened, UTC).isoformat(sep=" ", timespec="seconds")
    print(f"{incident['id']}  {'closed' if incident['closed'] else 'open'}  {', '.join(incident['alerts'])}  {begun}")
    for entry in incident["entries"]:
        print(f"{entry['at'] - opened:+9.1f} s  {_what(entry)}")
        if command := entry["detail"].get("run"):
            print(f"{'run':>11}  {command}")
