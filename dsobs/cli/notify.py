"""`dsobs notify test`: does a page reach those who are to be told?"""

import argparse
import asyncio

from dsobs.cli.exit_codes import ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_error, print_json, print_table


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser("notify", help="test the notifiers")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    test = actions.add_parser("test", help="send a test page and its resolve to each configured notifier")
    test.add_argument("--notifier", metavar="NAME", help="only this one")
    test.add_argument("--json", action="store_true", help="one JSON object a line")
    add_config_options(test)
    test.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 if all took it, 1 if one did not, 2 if none is configured."""
    from dsobs.collectors.exchange import open_session
    from dsobs.model.clock import SteadyClock
    from dsobs.notifiers import configured
    from dsobs.notifiers.check import CheckResult, check_notifiers

    config = load_config(args)

    async def check() -> list[CheckResult]:
        async with open_session(config.target) as session:
            found = [n for n in configured(config.notifiers, session) if args.notifier in (None, n.name)]
            return await check_notifiers(found, source=config.target.name or "dsobs", now=SteadyClock().now())

    results = asyncio.run(check())
    if not results:
        print_error("no such notifier is configured; set notifiers.pagerduty, alertmanager, slack or webhook")
        return ExitCode.USAGE
    if args.json:
        for result in results:
            print_json({"notifier": result.notifier, "ok": result.ok, "why": result.why})
    else:
        print_table(("notifier", "result"), [(r.notifier, "accepted" if r.ok else r.why) for r in results])
    return 0 if all(result.ok for result in results) else ExitCode.FAILED
