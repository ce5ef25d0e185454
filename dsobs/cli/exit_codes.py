"""What the exit status of every `dsobs` command means."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status. Codes above 128 are 128 and the signal's number, as in a shell."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    UNKNOWN = 4
    INTERRUPTED = 130
    PIPE_CLOSED = 141


MEANINGS = {
    ExitCode.DONE: "done; a question was answered with yes",
    ExitCode.FAILED: "tried and failed, or a question was answered with no",
    ExitCode.USAGE: "the command line or the configuration is wrong; nothing was done",
    ExitCode.UNREACHABLE: "the server, the sidecar or another service could not be reached",
    ExitCode.UNKNOWN: "`dsobs status`: not known to be healthy, and nothing is known to be wrong",
    ExitCode.INTERRUPTED: "ended by Ctrl-C",
    ExitCode.PIPE_CLOSED: "the reader of the output went away",
}


class CommandError(Exception):
    """Ends a command with one line for the user: what is wrong; what to do."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code
