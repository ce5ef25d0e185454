"""The probes' scripts, run by a shell against every kind of file that a control folder may hold."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dsobs.runtimes.control_folder import Kind, liveness_script, readiness_script

SHELLS = {
    "sh": ("sh", "-c"),
    "dash": ("dash", "-c"),
    "bash": ("bash", "-c"),
    "bash-posix": ("bash", "--posix", "-c"),
    "busybox": ("busybox", "sh", "-c"),
}
PROBE_SECONDS = 10.0
"""A probe that takes longer than this stands."""

Content = bytes | Callable[[int, int], bytes]


def _line(offset: int) -> Content:
    return lambda now, _: b"%d 1700000000.000 20261123T171656Z-3f9c\n" % (now + offset)


def _beyond(seconds: int) -> Content:
    return lambda now, horizon: b"%d - test\n" % (now + horizon + seconds)


HOLDING: dict[str, Content] = {
    "in 10 s": _line(10),
    "in 3 s": _line(3),
    "just within the horizon": _beyond(-5),
    "start not known": lambda now, _: b"%d - test\n" % (now + 10),
    "more fields": lambda now, _: b"%d - test and more\n" % (now + 10),
    "more lines": lambda now, _: b"%d - test\n0 - test\n" % (now + 10),
}
NOT_HOLDING: dict[str, Content] = {
    "empty": b"",
    "a line end": b"\n",
    "spaces": b"   \n",
    "garbage": b"\x00\xff\xfe garbage \x1b[31m\n",
    "a megabyte without a line end": b"9" * 1024 * 1024,
    "only NULs": b"\x00" * 512,
    "a word": b"restart now please\n",
    "past": _line(-1),
    "now": _line(0),
    "long past": b"1700000000 1700000000.000 test\n",
    "zero": b"0 - test\n",
    "negative": lambda now, _: b"-%d - test\n" % (now + 10),
    "just beyond the horizon": _beyond(5),
    "far future": b"99999999999 - test\n",
    "an hour ahead": _line(3600),
    "overflowing 32 bits": lambda now, _: b"%d - test\n" % (now + 10 + 2**32),
    "overflowing 64 bits": lambda now, _: b"%d - test\n" % (now + 10 + 2**64),
    "overflowing everything": b"9" * 400 + b" - test\n",
    "milliseconds": lambda now, _: b"%d - test\n" % ((now + 10) * 1000),
    "a fraction": lambda now, _: b"%d.5 - test\n" % (now + 10),
    "an exponent": b"1.8e9 - test\n",
    "hexadecimal": lambda now, _: b"0x%x - test\n" % (now + 10),
    "a sum": lambda now, _: b"%d+10 - test\n" % now,
    "a plus sign": lambda now, _: b"+%d - test\n" % (now + 10),
    "quoted": lambda now, _: b'"%d" - test\n' % (now + 10),
    "a unit": lambda now, _: b"%ds - test\n" % (now + 10),
    "an operator": b"-f /etc/passwd test\n",
    "a bracket": b"( - test\n",
    "a star": b"* - test\n",
    "a command": b"$(exit) `exit` test\n",
    "an array subscript": b"a[$(touch${IFS}owned)] - test\n",
    "the expiry alone": lambda now, _: b"%d\n" % (now + 10),
    "no incident": lambda now, _: b"%d 1700000000.000\n" % (now + 10),
    "cut off": lambda now, _: b"%d 1700000000.000 20261123T17" % (now + 10),
    "a byte order mark": lambda now, _: b"\xef\xbb\xbf%d - test\n" % (now + 10),
    "the request on the second line": lambda now, _: b"\n%d - test\n" % (now + 10),
    "another separator": lambda now, _: b"%d,-,test\n" % (now + 10),
}


def script(kind: Kind, folder: Path) -> str:
    """The script of the probe that reads this kind."""
    return liveness_script(str(folder)) if kind is Kind.RESTART else readiness_script(None, str(folder))


def run(shell: Sequence[str], text: str, env: Mapping[str, str] | None = None) -> int:
    """Exit code; TimeoutExpired for a script that stands. It must say nothing: kubelet would log it each time."""
    done = subprocess.run(
        [*shell, text],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PROBE_SECONDS,
        env=None if env is None else dict(env),
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    return done.returncode


def put(folder: Path, kind: Kind, content: Content) -> None:
    """Writes a file as it is."""
    now = int(time.time())
    (folder / kind).write_bytes(content if isinstance(content, bytes) else content(now, kind.horizon))


def check_contents(shell: Sequence[str], folder: Path, kind: Kind) -> None:
    """Every content leads to what it should; AssertionError names those that do not."""
    wrong = []
    for table, code in ((HOLDING, 1), (NOT_HOLDING, 0)):
        for name, content in table.items():
            put(folder, kind, content)
            if run(shell, script(kind, folder)) != code:
                wrong.append(name)
    assert not wrong
    assert sorted(path.name for path in folder.iterdir()) == [kind]


def check_what_is_no_file(shell: Sequence[str], folder: Path, kind: Kind) -> None:
    """Nothing there, a folder, a pipe, a link to nowhere, an unreadable folder: alive."""
    assert run(shell, script(kind, folder)) == 0
    path = folder / kind
    path.mkdir()
    assert run(shell, script(kind, folder)) == 0
    path.rmdir()
    os.mkfifo(path)
    assert run(shell, script(kind, folder)) == 0
    path.unlink()
    path.symlink_to(folder / "nowhere")
    assert run(shell, script(kind, folder)) == 0
    path.unlink()
    assert run(shell, script(kind, folder / "not" / "there")) == 0


def check_images_without_date(shell: Sequence[str], folder: Path, kind: Kind, binary: str) -> None:
    """Without `date`, or with one that tells no seconds, nobody is restarted."""
    put(folder, kind, HOLDING["in 10 s"])
    tools = folder.parent / "tools"
    tools.mkdir()
    # A busybox shell runs its own applets, unless another command of that name comes before them: it never does.
    if shell[0] != "busybox":
        assert run((binary, *shell[1:]), script(kind, folder), {"PATH": str(tools)}) == 0
        for answer in ("", "%s", "1e9", "Mon"):
            date = tools / "date"
            date.write_text(f"#!/bin/sh\necho '{answer}'\n")
            date.chmod(0o755)
            assert run((binary, *shell[1:]), script(kind, folder), {"PATH": f"{tools}:/usr/bin:/bin"}) == 0
