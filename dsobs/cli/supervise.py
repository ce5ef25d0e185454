"""`dsobs supervise -- CMD`: in the list of commands; `main` hands its words to the supervisor unread."""

import argparse


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    subparsers.add_parser("supervise", help="own an engine's process: dsobs supervise -- vllm serve …", add_help=False)
