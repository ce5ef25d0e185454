"""`dsobs silence`: silences, and the kill switch, through a running dsobs's API."""

import argparse
import getpass
import os

from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_json, print_table


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "silence",
        help="keep alerts from paging and repairing for a while",
        description="While a silence holds, matching alerts page nobody and repair nothing. Needs a running dsobs with "
        "api.control_token set, and the same setting here.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="a new silence")
    add.add_argument("matcher", nargs="+", help='such as alertname=EngineHung or model_name=~"r1-.*"')
    add.add_argument("--duration", default="1h", help="how long, such as 30m or 2h")
    add.add_argument("--comment", default="", help="why")
    listing = actions.add_parser("list", help="those that hold")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    expire = actions.add_parser("expire", help="end one now")
    expire.add_argument("id", help="its id")
    kill = actions.add_parser("kill-switch", help="stop all repair, or allow it again")
    kill.add_argument("position", choices=("on", "off"), help="on: nothing is repaired")
    for action in (add, listing, expire, kill):
        add_config_options(action)
        action.set_defaults(run=run)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container a user need not be in its list.
        return f"uid {os.getuid()}"


def run(args: argparse.Namespace) -> int:
    """0; 1 if dsobs refused; 3 if none answers."""
    from dsobs.cli.control_api import ask

    config = load_config(args)
    match args.action:
        case "add":
            body = {
                "matchers": args.matcher,
                "duration": args.duration,
                "createdBy": _who(),
                "comment": args.comment,
            }
            data = ask(config, "POST", "/silences", json=body)
        case "list":
            data = ask(config, "GET", "/silences")
        case "expire":
            data = ask(config, "DELETE", f"/silences/{args.id}")
        case _:
            data = ask(config, "PUT", "/kill-switch", params={"on": str(args.position == "on").lower()})
    if args.action == "list":
        if args.json:
            for silence in data:
                print_json(silence)
        else:
            print_table(
                ("id", "matchers", "until", "by", "comment"),
                [(s["id"], " ".join(s["matchers"]), _time(s["endsAt"]), s["createdBy"], s["comment"]) for s in data],
            )
    elif args.action == "add":
        print(f"{data['id']} until {_time(data['endsAt'])}")
    else:
        print("done")
    return 0


def _time(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds")
