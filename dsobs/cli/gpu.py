"""`dsobs gpu`: faults of cards that hold repair back, and the word that a card is well again."""

import argparse
from datetime import UTC, datetime
from urllib.parse import quote

from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_json, print_table


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "gpu",
        help="broken cards, beside which nothing is restarted",
        description="After an XID that needs a reset of the card, or more, dsobs restarts nothing until the node was "
        "booted or a person says that the card is well. Needs a running dsobs.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    faults = actions.add_parser("faults", help="those that stand")
    faults.add_argument("--json", action="store_true", help="one JSON object a line")
    clear = actions.add_parser(
        "clear",
        help="these cards are well again",
        description="Say it once the card was reset or replaced. Needs api.control_token set, and the same here.",
    )
    clear.add_argument("uuid", nargs="+", help="the card, such as GPU-5d2e…, as `dsobs gpu faults` names it")
    for action in (faults, clear):
        add_config_options(action)
        action.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 if dsobs refused; 3 if none answers."""
    from dsobs.cli.control_api import ask

    config = load_config(args)
    if args.action == "clear":
        for uuid in args.uuid:
            cleared = ask(config, "DELETE", f"/gpu-faults/{quote(uuid, safe='')}")["cleared"]
            print(f"{uuid}: {cleared} cleared")
        return 0
    found = ask(config, "GET", "/status")["view"]["gpu_faults"]
    if args.json:
        for fault in found:
            print_json(fault)
    else:
        rows = [(f["card"], str(f["index"]), str(f["xid"]), f["meaning"], _time(f["at"])) for f in found]
        print_table(("card", "index", "XID", "meaning", "at"), rows)
    return 0


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds")
