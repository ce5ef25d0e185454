"""`dsobs logs setup`: templates and lifecycle, installed in Elasticsearch."""

import argparse
import asyncio

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_json, print_table


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "setup",
        help="install templates and lifecycle in Elasticsearch",
        description="Puts the index template, component templates and lifecycle of dsobs's records to the "
        "Elasticsearch of logs.elasticsearch. What is there already stays as it is. Needs the rights of the role "
        "dsobs_logs_setup (`dsobs logs export roles`).",
    )
    parser.add_argument("--roles", action="store_true", help="put the roles too (needs manage_security)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 if it was refused; 2 if nothing is configured; 3 if the server can't be reached."""
    from dsobs.cli.logs.elasticsearch import settings_of

    settings_of(load_config(args).logs)
    return asyncio.run(_install(args))


async def _install(args: argparse.Namespace) -> int:
    from dsobs.cli.logs.elasticsearch import connected, settings_of
    from dsobs.logs.indices.install import InstallError, install

    settings = settings_of(load_config(args).logs)
    done = []
    try:
        async with connected(settings) as ask:
            async for one in install(ask, settings, with_roles=args.roles):
                done.append(one)
                if args.json:
                    print_json({"kind": one.kind, "name": one.name, "outcome": one.outcome, "note": one.note})
    except InstallError as error:
        code = ExitCode.UNREACHABLE if error.unreachable else ExitCode.FAILED
        raise CommandError(str(error), code) from None
    finally:
        if not args.json and done:
            print_table(("kind", "name", "", ""), [(one.kind, one.name, one.outcome, one.note) for one in done])
    return ExitCode.DONE
