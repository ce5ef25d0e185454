"""The command line of `dsobs supervise`."""

import argparse
import os
import sys

from dsobs.supervisor import DEFAULT_SOCKET
from dsobs.supervisor.output import LogFile
from dsobs.supervisor.supervisor import COULD_NOT_SUPERVISE, Supervisor


def options_parser() -> argparse.ArgumentParser:
    """The options before `--`."""
    parser = argparse.ArgumentParser(
        prog="dsobs supervise",
        usage="dsobs supervise [options] -- COMMAND …",
        description="Runs an inference server and restarts it when it ends, or when dsobs asks for it.",
        allow_abbrev=False,
    )
    parser.add_argument("--socket", default=DEFAULT_SOCKET, help="where dsobs finds it (default %(default)s)")
    parser.add_argument(
        "--restart",
        choices=("always", "on-failure", "never"),
        default="always",
        help="when the engine ends by itself (default %(default)s; some crashed engines exit with 0)",
    )
    parser.add_argument(
        "--stop-grace",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="seconds from a forwarded SIGTERM to SIGKILL (default %(default)g); inf: no SIGKILL",
    )
    parser.add_argument("--log-file", metavar="F", help="write the output to F as well")
    parser.add_argument(
        "--log-max-bytes",
        type=_size,
        default=64 << 20,
        metavar="N",
        help="rotate F to F.1 at this size (default %(default)d)",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; write 30, or inf")
    return seconds


def _size(text: str) -> int:
    try:
        size = int(text)
    except ValueError:
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; write {64 << 20}")
    return size


def supervise(argv: list[str]) -> int:
    """`dsobs supervise`: runs to the engine's end and returns its exit code (128 + n for signal n).

    125: could not supervise; 126, 127: COMMAND can't be executed, or isn't there. SystemExit(2) on wrong options.
    """
    parser = options_parser()
    cut = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:cut])
    command = argv[cut + 1 :]
    if not command:
        parser.error("the command is missing: dsobs supervise [options] -- COMMAND …")
    # With one of 0 to 2 closed, a pipe would take its place.
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(fd)
    try:
        log_file = LogFile(options.log_file, options.log_max_bytes) if options.log_file else None
    except OSError as error:
        sys.stderr.write(f"dsobs supervise: {options.log_file}: {error.strerror}\n")
        return COULD_NOT_SUPERVISE
    return Supervisor(
        command,
        socket_path=options.socket,
        restart=options.restart,
        stop_grace=options.stop_grace,
        log_file=log_file,
    ).run()
