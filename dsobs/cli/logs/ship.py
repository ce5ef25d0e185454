"""`dsobs logs ship`: files to Elasticsearch or to a file, with the guarantee of the sidecar, without its settings."""

import argparse
import asyncio
import contextlib
import glob
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dsobs.cli import footprint
from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.logs.status import FORWARD
from dsobs.cli.options import add_config_options, load_config, natural
from dsobs.cli.output import print_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsobs.config import Config
    from dsobs.config.logs import Logs
    from dsobs.logs.forward import Forwarder
    from dsobs.logs.ship import Shipper
    from dsobs.logs.spool import Spool
    from dsobs.logs.status import Status

CANNOT_READ = "%s can't be read: %s"
"""As the log says it of a file."""
STDIN = "-"
STDOUT = "-"
SPOOL_BYTES = 256 * 1024 * 1024
LEAST_SPOOL_BYTES = 1024 * 1024
RECORDS = "records:"
"""What stands before a file of the file sink."""
UNREACHABLE_SECONDS = 15.0
"""With --once: a sink that has taken nothing for so long from the start is not there."""


def add_parser(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the action."""
    parser = actions.add_parser(
        "ship",
        help="ship log files to Elasticsearch or to a file",
        description="Ships log files, each record once, from where it was left. Settings of a file (--config) and "
        "--set hold where no flag says else, such as --set logs.elasticsearch.api_key=env:NAME.",
    )
    parser.add_argument(
        "--from",
        dest="patterns",
        metavar="GLOB",
        action="append",
        help="files to ship (logs.files), as '/var/log/vllm/*.log' or FORMAT:GLOB; may be "
        "repeated. - or FORMAT:- is stdin, kept in the state folder until it is acknowledged. "
        "records:FILE is a file that dsobs wrote (logs.file.path), whose records keep their ids and "
        "indices",
    )
    parser.add_argument(
        "--to", metavar="URL|FILE", help="an Elasticsearch (logs.elasticsearch.urls) or a file; - is stdout"
    )
    parser.add_argument("--index", metavar="NAME", help="index or data stream (logs.elasticsearch.index)")
    parser.add_argument(
        "--state",
        metavar="DIR",
        type=Path,
        help="where it keeps how far it came; the same files need the same one (~/.local/state/dsobs/logs)",
    )
    parser.add_argument(
        "--rate",
        type=natural,
        metavar="BYTES",
        default=0,
        help="with --from records:FILE, at most so many bytes a second (default: no limit)",
    )
    parser.add_argument(
        "--spool-bytes",
        type=int,
        metavar="BYTES",
        help="with --from -, how much of stdin may wait in the state folder; then it is not read until some of it is "
        f"acknowledged (default: {SPOOL_BYTES})",
    )
    parser.add_argument("--once", action="store_true", help="end when all that is there is acknowledged")
    add_config_options(parser, shorthands=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when all was shipped or a stop was asked for; 1 if something needs mending; 3 if the sink is not there."""
    footprint.one_heap()
    piped = _take_stdin(args)
    config, wanted = _wanted(args, piped=piped)
    if not wanted.files:
        raise CommandError("no files; give --from GLOB, such as --from '/var/log/vllm/*.log'", ExitCode.USAGE)
    try:
        return asyncio.run(_ship(args, config, wanted, piped=piped))
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed; pip install 'dsobs[logs]'", ExitCode.USAGE) from error


def _take_stdin(args: argparse.Namespace) -> bool:
    """Whether stdin is shipped; then the files to ship are those that it is put into."""
    from dsobs.logs.spool import FOLDER

    args.state = (args.state or Path.home() / ".local/state/dsobs/logs").absolute()
    given = args.patterns or []
    piped = [text for text in given if text.rpartition(":")[2] == STDIN]
    if not piped:
        if args.spool_bytes is not None:
            raise CommandError(f"--spool-bytes is for --from {STDIN}; leave it out", ExitCode.USAGE)
        return False
    if len(given) > 1:
        raise CommandError(
            f"--from {STDIN} goes alone; ship the files in a process of their own, with another --state", ExitCode.USAGE
        )
    args.spool_bytes = SPOOL_BYTES if args.spool_bytes is None else args.spool_bytes
    if args.spool_bytes < LEAST_SPOOL_BYTES:
        raise CommandError(f"--spool-bytes: write {LEAST_SPOOL_BYTES} or more", ExitCode.USAGE)
    folder = glob.escape(str(args.state / FOLDER))
    args.patterns = [f"{piped[0].rpartition(':')[0] or 'auto'}:{folder}/*.lines"]
    return True


def _wanted(args: argparse.Namespace, *, piped: bool) -> "tuple[Config, Logs]":
    from pydantic import ValidationError

    from dsobs.config.logs import Logs

    to: str | None = args.to
    url = to if to is not None and "://" in to else None
    if url is not None:
        # Through the loader, so that what is wrong is told as everywhere.
        args.settings.append(f"logs.elasticsearch.urls={url}")
    if args.index is not None:
        if to is not None and url is None:
            raise CommandError("--index is for Elasticsearch, and --to is a file; leave one out", ExitCode.USAGE)
        args.settings.append(f"logs.elasticsearch.index={args.index}")
    config = load_config(args)
    fields: dict[str, Any] = config.logs.model_dump()
    if args.patterns:
        fields["files"] = args.patterns
    if to is not None and url is None:
        fields |= {"elasticsearch": None, "otlp": None, "file": {**fields["file"], "path": Path(to)}}
    if piped:
        fields |= {"exclude": (), "from_end": False}
    try:
        return config, Logs.model_validate(fields)
    except ValidationError as error:
        texts = [str(one["msg"]).removeprefix("Value error, ") for one in error.errors()]
        raise CommandError("\ndsobs: ".join(f"--from: {text}" for text in texts), ExitCode.USAGE) from None


async def _ship(args: argparse.Namespace, config: "Config", wanted: "Logs", *, piped: bool) -> int:
    from dsobs.cli.own_log import configure_logging
    from dsobs.logs.lock import LockedError
    from dsobs.logs.spool import FOLDER, Spool
    from dsobs.state import StateError

    bar = _Bar()
    watch = _Watch(once=args.once, to_stdout=args.to == STDOUT)
    directory: Path = args.state
    spool = Spool(sys.stdin.fileno(), directory / FOLDER, args.spool_bytes) if piped else None

    def tick(status: "Status") -> None:
        bar.show(status)
        if watch.ends(status):
            shipper.stop(drain=False)

    shipper = _shipper(args, config, wanted, spool, tick)
    with bar:
        configure_logging(config.log.model_copy(update={"format": "text", "level": "warning"}), stream=bar.stream)
        if args.once or args.to == STDOUT:
            # What becomes of it is said at the end.
            logging.getLogger("dsobs.logs.delivery").setLevel(logging.CRITICAL)
        if args.once:
            logging.getLogger("dsobs.logs.sources").addFilter(_not_of_reading)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, shipper.stop)
        footprint.settle()
        try:
            await shipper.run()
        except LockedError as error:
            raise CommandError(str(error)) from error
        except (StateError, OSError) as error:
            why = f"{error.filename or directory}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise CommandError(why) from error
        except LookupError as error:
            raise CommandError(str(error.args[0]), ExitCode.USAGE) from error
    return _conclude(shipper, watch, spool, wanted.files, once=args.once)


def _shipper(
    args: argparse.Namespace, config: "Config", wanted: "Logs", spool: "Spool | None", tick: "Callable[[Status], None]"
) -> "Shipper | Forwarder":
    """Of log files, of stdin, or of what a file sink wrote."""
    from dsobs.logs.forward import Forwarder
    from dsobs.logs.ship import Shipper
    from dsobs.logs.sinks import SinkSettings

    kept = [Path(name.removeprefix(RECORDS)) for name in wanted.files if name.startswith(RECORDS)]
    if not kept:
        if args.rate:
            raise CommandError(f"--rate is for --from {RECORDS}FILE; leave it out", ExitCode.USAGE)
        return Shipper(
            wanted,
            args.state,
            service=config.target.name,
            once=args.once and spool is None,
            on_tick=tick,
            sink="stdout" if args.to == STDOUT else "",
            spool=spool,
        )
    if len(wanted.files) > 1 or wanted.elasticsearch is None:
        raise CommandError(
            f"{RECORDS}FILE goes alone, to an Elasticsearch; give one --from and --to URL", ExitCode.USAGE
        )
    if not kept[0].exists():
        raise CommandError(f"{kept[0]} is not there; look at --from", ExitCode.FAILED)
    settings = SinkSettings(wanted, args.state / FORWARD)
    return Forwarder(settings, kept[0], most_bytes_per_second=args.rate, once=args.once, on_tick=tick)


def _conclude(
    shipper: "Shipper | Forwarder", watch: "_Watch", spool: "Spool | None", files: "Sequence[str]", *, once: bool
) -> int:
    """Says what came of it, on stderr; the exit status."""
    from dsobs.logs.metrics import REGISTRY

    def count(outcome: str) -> int:
        return int(REGISTRY.get_sample_value("dsobs_log_records_total", {"outcome": outcome}) or 0)

    status = watch.last
    said = [f"{count('sent')} records sent"]
    for outcome, words in (
        ("duplicate", "were there already"),
        ("quarantined", "in the failure store"),
        ("rejected", "rejected by the receiver"),
        ("dead_letter", f"refused, kept in {shipper.directory / 'dead-letters.ndjson'}"),
    ):
        if count(outcome):
            said.append(f"{count(outcome)} {words}")
    print(f"dsobs: {', '.join(said)}", file=sys.stderr)
    for name, what in (
        ("dsobs_log_left_out_records_total", "records left out by logs.transform"),
        ("dsobs_log_lost_bytes_total", "bytes lost"),
    ):
        for reason, number in _by_reason(name):
            print_error(f"{number} {what}: {reason}")
    for path, size in shipper.unfinished.items():
        print_error(f"{path}: its last line of {size} bytes has no end; it was sent as it stands")
    for path, why in status.unreadable.items() if once and status is not None else ():
        print_error(f"{path} can't be read: {why}")
    if spool is not None and spool.held_bytes:
        print_error(
            f"{spool.held_bytes} bytes of stdin are kept in {spool.folder}; they go on when it is run again with this "
            "--state, for which --from - </dev/null is enough"
        )
    if watch.stopped_by is not None:
        reason, text = watch.stopped_by
        print_error(f"{text}; nothing is lost, run it again")
        return ExitCode.UNREACHABLE if reason == "sink" else ExitCode.FAILED
    if once and spool is None and status is not None and not status.files and not status.unreadable:
        print_error(_no_file(files))
        return ExitCode.FAILED
    return ExitCode.FAILED if once and status is not None and status.unreadable else ExitCode.DONE


def _by_reason(name: str) -> "list[tuple[str, int]]":
    """(reason, value) of a counter, as far as it counted anything."""
    from dsobs.logs.metrics import REGISTRY

    samples = (one for metric in REGISTRY.collect() for one in metric.samples if one.name == name)
    return [(one.labels["reason"], int(one.value)) for one in samples if one.value]


def _no_file(files: "Sequence[str]") -> str:
    """What is said where these patterns find nothing."""
    folders = [path for path in (text.rpartition(":")[2] for text in files) if os.path.isdir(path)]  # noqa: PTH112 - raises nothing
    if folders:
        return f"{folders[0]} is a folder; write {folders[0].rstrip('/')}/*.log, or ** for the folders in it too"
    return "no file matches; look at --from"


def _not_of_reading(line: logging.LogRecord) -> bool:
    """Files that can't be read are named at the end."""
    return line.msg != CANNOT_READ


class _Watch:
    """Ends what can't go on by itself: with --once, and where stdout is closed."""

    def __init__(self, *, once: bool, to_stdout: bool) -> None:
        self._to_stdout = to_stdout
        self.last: Status | None = None
        self.stopped_by: tuple[str, str] | None = None
        self._once = once
        self._trouble_since: float | None = None

    def ends(self, status: "Status") -> bool:
        """Whether shipping is to stop."""
        from dsobs.logs.delivery import HOLD_REASONS

        self.last = status
        now = asyncio.get_running_loop().time()
        if status.trouble is None:
            self._trouble_since = None
            return False
        self._trouble_since = self._trouble_since or now
        reason = status.trouble[0]
        if self._to_stdout and reason in HOLD_REASONS:
            self.stopped_by = status.trouble
        waited = now - self._trouble_since
        # What another moment may mend is waited for; what somebody must mend is told at once.
        hopeless = reason in HOLD_REASONS or (not status.ever_sent and waited >= UNREACHABLE_SECONDS)
        if self._once and self.stopped_by is None:
            if hopeless:
                self.stopped_by = status.trouble
            elif waited == 0.0:
                print_error(f"{status.trouble[1]}; trying again")
        return self.stopped_by is not None


class _Bar:
    """A progress bar by bytes, at a terminal; nothing else."""

    def __init__(self) -> None:
        self._show: Callable[[Status], None] = lambda _: None
        self._stack = contextlib.ExitStack()
        self.stream = sys.stderr

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            console = Console(stderr=True)
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            # Lines of the log go above the bar.
            progress = self._stack.enter_context(Progress(*columns, console=console, redirect_stderr=True))
            self.stream = sys.stderr
            task = progress.add_task("shipped", total=None)

            def show(status: "Status") -> None:
                progress.update(
                    task,
                    total=status.total_bytes or None,
                    completed=status.acknowledged_bytes,
                    description=f"shipped ({status.files} files)",
                )

            self._show = show
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        logging.getLogger().handlers = []

    def show(self, status: "Status") -> None:
        """Draws it."""
        self._show(status)
