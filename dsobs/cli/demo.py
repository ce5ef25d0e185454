"""`dsobs demo`: a hang, seen, paged and repaired before your eyes."""

import argparse
import sys
from pathlib import Path


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "demo",
        help="show a hang being seen, paged and repaired",
        description="Starts an inference server, loads it, stops its engine core with SIGSTOP and shows what dsobs "
        "does about it. Ends by itself; exit code 0 only if the repair really happened.",
    )
    parser.add_argument(
        "--command",
        metavar="CMD",
        help="start this server instead of the simulator; {port} stands for its port. Its engine core must be a "
        "process named like vLLM's",
    )
    parser.add_argument(
        "--start-timeout", type=float, default=60.0, metavar="S", help="seconds that its start may take"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs, state and flight recorder in this folder")
    parser.add_argument(
        "--elasticsearch",
        metavar="URL",
        help="ship the logs to this Elasticsearch too, with the password in the variable ELASTICSEARCH_PASSWORD",
    )
    parser.add_argument("--user", metavar="NAME", default="elastic", help="user for it (elastic)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 if the repair happened, 1 if not, 130 on Ctrl-C."""
    from dsobs import demo
    from dsobs.demo_logs import ElasticsearchHere

    elastic = ElasticsearchHere(args.elasticsearch, args.user) if args.elasticsearch else None
    return demo.run(args.command or demo.SIMULATOR, args.start_timeout, sys.stdout, args.keep, elastic)
