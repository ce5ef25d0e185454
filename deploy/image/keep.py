"""The first process of dsobs's container: starts dsobs again when it ends, without ending the container.

Kubernetes counts a native sidecar in the readiness of its pod. A container that ends, for whatever reason, takes the
pod out of service until it is back, and the longer, the more often it ends. So dsobs may end, be killed or fail to
start, and the container stays. Only `dsobs run` is kept; every other command takes this process's place.

The standard library alone, and few modules of it, so that it takes little memory.
"""

import contextlib
import os
import signal
import sys
import time

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before dsobs is started again; doubled each time."""
GOOD_SECONDS = 600.0
"""After this long the next pause is the first one again."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Keeper:
    """Keeps one command running until it is told to end."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self._child = 0
        self._ending = False

    def run(self) -> int:
        """Exit status of the last run."""
        for number in FORWARDED:
            signal.signal(number, self._forward)
        pause = FIRST_PAUSE
        while True:
            begun = time.monotonic()
            status = self._once()
            if self._told_to_end():
                return status
            if time.monotonic() - begun > GOOD_SECONDS:
                pause = FIRST_PAUSE
            what = f"was killed by signal {status - 128}" if status > 128 else f"ended with exit status {status}"
            print(f"dsobs {what}; it is started again in {pause:.0f} s", file=sys.stderr, flush=True)
            wake = time.monotonic() + pause
            while time.monotonic() < wake:
                if self._told_to_end():
                    return status
                time.sleep(0.2)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _told_to_end(self) -> bool:
        return self._ending

    def _once(self) -> int:
        # A signal must not fall between the start and the moment when it is known whom to pass it to.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        self._child = os.posix_spawn(self.command[0], self.command, os.environ, setsigmask=())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        while True:
            # Whatever else ends in the container is reaped too.
            pid, status = os.wait()
            if pid == self._child:
                self._child = 0
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code

    def _forward(self, number: int, _: object) -> None:
        self._ending = self._ending or number != signal.SIGHUP
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)


if __name__ == "__main__":
    if sys.argv[2:3] != ["run"]:
        os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - the image names the program
    sys.exit(Keeper(sys.argv[1:]).run())
