"""`dsobs supervise -- CMD`: hands over to the standard-library supervisor."""

import argparse


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command; its words are read by the supervisor itself."""
    parser = subparsers.add_parser(
        "supervise",
        help="own an engine's process: `dsobs supervise -- vllm serve …`",
        add_help=False,
    )
    parser.add_argument("words", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The supervisor's exit code."""
    from dsobs.supervisor import supervise

    return supervise(args.words)
