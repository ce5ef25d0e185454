"""`dsobs run`: the sidecar."""

import argparse
import asyncio
import signal
from typing import TYPE_CHECKING

from dsobs.cli import footprint
from dsobs.cli.exit_codes import ExitCode
from dsobs.cli.options import add_config_options, config_file, read_config
from dsobs.cli.output import print_error
from dsobs.cli.own_log import configure_logging

if TYPE_CHECKING:
    from dsobs.config import ConfigError

START_SECONDS = 10.0
"""After this what only the start needed is free."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "run",
        help="watch the engine beside it, tell and repair",
        description="Watches the inference server beside it. With no configuration: vLLM at http://127.0.0.1:8000, "
        "nothing is changed, nobody is paged, no synthetic request is sent.",
    )
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT; SIGHUP reads the settings again."""
    footprint.one_heap()
    from dsobs.api.server import ListenError
    from dsobs.config import ConfigError
    from dsobs.sidecar import Sidecar
    from dsobs.sidecar.folder_lock import FolderInUseError
    from dsobs.sidecar.settings import with_files

    try:
        loaded = read_config(args)
    except ConfigError as error:
        return _refused(with_files(error))
    config = loaded.config
    configure_logging(config.log)
    footprint.settle()

    async def main() -> int:
        try:
            sidecar = Sidecar(config, placed=loaded.problems, reread=lambda: read_config(args), file=config_file(args))
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, sidecar.request_reload)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, sidecar.stop)
            loop.call_later(START_SECONDS, footprint.give_back)
            await sidecar.run()
        except ConfigError as error:
            return _refused(error)
        except (ListenError, FolderInUseError, LookupError) as error:
            print_error(f"{error}")
            return ExitCode.USAGE
        return 0

    return asyncio.run(main())


def _refused(error: "ConfigError") -> int:
    for problem in error.problems:
        print_error(str(problem))
    return ExitCode.USAGE
