"""`dsobs logs`: shipping without a sidecar, what can be asked of one that ships, and what was shipped.

Each action is a module of this package with `add_parser(actions)`.
"""

import argparse
import importlib

ACTIONS = ("ship", "status", "search", "replay", "setup", "export")
"""Modules of this package, in the order of the help."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command and its actions."""
    parser = subparsers.add_parser("logs", help="ship log files, see how that stands, search what was shipped")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name in ACTIONS:
        importlib.import_module(f"dsobs.cli.logs.{name}").add_parser(actions)
