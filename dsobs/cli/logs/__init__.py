"""`dsobs logs COMMAND`: log records, from files to where they can be searched.

Each command is a module of this package with `add_parser(subparsers)`, like those of `dsobs.cli`.
"""

import argparse
import importlib

COMMANDS = ("search", "setup", "export", "replay")
"""Modules of this package, in the order of `dsobs logs --help`."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command with all of its own."""
    parser = subparsers.add_parser(
        "logs",
        help="ship, search and look after log records",
        description="Log records, from files to where they can be searched.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="logs_command", required=True)
    for name in COMMANDS:
        importlib.import_module(f"dsobs.cli.logs.{name}").add_parser(commands)
