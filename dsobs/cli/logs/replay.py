"""`dsobs logs replay`: dead letters, sent again."""

import argparse
import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.logs.status import FORWARD
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_error, print_table

if TYPE_CHECKING:
    from dsobs.config import Config
    from dsobs.logs.replay import Replayed


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "replay",
        help="send dead letters again",
        description="Sends records again that Elasticsearch refused for good, after their mapping or template was "
        "mended. What is refused again stays a dead letter. dsobs may be running.",
    )
    parser.add_argument("--dead-letters", action="store_true", required=True, help="say that it is these")
    parser.add_argument("--show", action="store_true", help="only show how many there are, and why")
    parser.add_argument("--state", metavar="DIR", type=Path, help="that of `logs ship` (else the sidecar's)")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 if none is left; 1 if some were refused again; 2 if nothing is configured; 3 if the server can't be used."""
    from dsobs.cli.logs.elasticsearch import settings_of

    config = load_config(args)
    directory: Path = args.state or config.state.directory / "logs"
    try:
        if args.show:
            return _show(directory)
        settings_of(config.logs)
        return asyncio.run(_replay(config, directory))
    except OSError as error:
        raise CommandError(f"{error.filename or directory}: {error.strerror}", ExitCode.USAGE) from None


def _folders(directory: Path) -> list[Path]:
    """Of the shipper, and of what forwards a file to Elasticsearch."""
    return [directory, directory / FORWARD]


def _show(directory: Path) -> int:
    from dsobs.logs.replay import reasons

    counted = sum((reasons(folder) for folder in _folders(directory)), start=reasons(Path("/nonexistent")))
    print_table(("letters", "index", "why"), [(count, *what) for what, count in counted.most_common()])
    return ExitCode.DONE


async def _replay(config: "Config", directory: Path) -> int:
    try:
        from dsobs.logs.sinks.elasticsearch import ElasticsearchSink
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed; pip install 'dsobs[logs]'", ExitCode.FAILED) from None
    from dsobs.logs.dead_letters import DeadLettersFullError
    from dsobs.logs.lock import LockedError, locked
    from dsobs.logs.replay import replay, waiting
    from dsobs.logs.sinks import SinkSettings
    from dsobs.logs.transforms import open_transforms

    transforms = open_transforms(config.logs)
    sink = ElasticsearchSink(SinkSettings(config.logs, directory))
    status = ExitCode.DONE
    try:
        for folder in _folders(directory):
            if waiting(folder):
                with locked(folder / "replay"):
                    status = max(status, _tell(await replay(folder, sink, time.time(), transforms)))
    except (LockedError, DeadLettersFullError) as error:
        raise CommandError(str(error)) from None
    finally:
        await sink.close()
    return status


def _tell(done: "Replayed") -> ExitCode:
    print(f"{done.sent} sent, {done.duplicates} were there already, {done.refused} refused again, {done.left} left")
    if done.left_out:
        print_error(f"{done.left_out} are left out by logs.transform, which had failed on them")
    if done.unreadable:
        print_error(f"{done.unreadable} lines are no dead letters; they are in dead-letters.unreadable")
    if done.trouble:
        print_error(f"{done.trouble}; what was not sent is kept")
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED if done.refused else ExitCode.DONE
