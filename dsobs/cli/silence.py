"""`dsobs silence`: silences, and the kill switch, through a running dsobs's API."""

import argparse
import asyncio
import getpass
from typing import Any

from dsobs.cli.exit_codes import ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_error, print_json, print_table


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


def run(args: argparse.Namespace) -> int:
    """0; 1 if dsobs refused; 3 if none answers."""
    import aiohttp

    from dsobs.config import SecretError

    config = load_config(args)
    token = config.api.control_token

    async def ask() -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token.reveal()}"} if token is not None else {}
        host, _, port = config.api.listen.rpartition(":")
        base = f"http://{host if host not in ('', '0.0.0.0') else '127.0.0.1'}:{port}/api/v1"  # noqa: S104
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            match args.action:
                case "add":
                    body = {
                        "matchers": args.matcher,
                        "duration": args.duration,
                        "createdBy": getpass.getuser(),
                        "comment": args.comment,
                    }
                    request = session.post(f"{base}/silences", json=body)
                case "list":
                    request = session.get(f"{base}/silences")
                case "expire":
                    request = session.delete(f"{base}/silences/{args.id}")
                case _:
                    request = session.put(f"{base}/kill-switch", params={"on": str(args.position == "on").lower()})
            async with request as answer:
                return answer.status, await answer.json(content_type=None)

    try:
        status, answer = asyncio.run(ask())
    except SecretError as error:
        print_error(f"{error}")
        return ExitCode.USAGE
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        print_error(f"no dsobs answers at {config.api.listen} (api.listen): {error}")
        return ExitCode.UNREACHABLE
    if status >= 400:
        told = answer.get("error") or answer.get("detail") or answer
        print_error(f"refused: {told}")
        return ExitCode.FAILED
    if args.action == "list":
        if args.json:
            for silence in answer["data"]:
                print_json(silence)
        else:
            print_table(
                ("id", "matchers", "until", "by", "comment"),
                [
                    (s["id"], " ".join(s["matchers"]), _time(s["endsAt"]), s["createdBy"], s["comment"])
                    for s in answer["data"]
                ],
            )
    elif args.action == "add":
        print(f"{answer['data']['id']} until {_time(answer['data']['endsAt'])}")
    else:
        print("done")
    return 0


def _time(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds")
