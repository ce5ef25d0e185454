"""The process table as /proc shows it: what belongs to an engine, what it costs, what is left of it."""

# pathlib and what it imports are 1 MiB of memory beside every engine, so paths are strings here.
# ruff: noqa: PTH119, PTH123, PTH208

import collections
import os
from collections.abc import Iterable
from typing import NamedTuple


class Process(NamedTuple):
    """One line of the process table, from /proc/PID/stat (proc(5))."""

    pid: int
    parent: int
    session: int
    state: str
    start_ticks: int
    """Clock ticks from boot to its start; with the pid it names a process for good."""
    cpu_ticks: int
    """User and system time of all its threads, without its children."""


def process(pid: int, proc: str = "/proc") -> Process | None:
    """The process `pid`, None if there is none (any more)."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may hold any character, parentheses too.
    field = text[text.rfind(b")") + 2 :].split()
    return Process(
        pid=pid,
        state=field[0].decode(),
        parent=int(field[1]),
        session=int(field[3]),
        cpu_ticks=int(field[11]) + int(field[12]),
        start_ticks=int(field[19]),
    )


def process_table(proc: str = "/proc") -> dict[int, Process]:
    """All processes that can be seen, by pid."""
    found = (process(int(name), proc) for name in os.listdir(proc) if name.isdigit())
    return {each.pid: each for each in found if each is not None}


def descendants(table: dict[int, Process], root: int) -> list[Process]:
    """All processes below `root`, parents before children; without `root` itself."""
    children = collections.defaultdict(list)
    for each in table.values():
        children[each.parent].append(each)
    found: list[Process] = []
    pending = [root]
    while pending:
        below = children.pop(pending.pop(), [])
        found += below
        pending += [each.pid for each in below]
    return found


class CpuTime:
    """CPU seconds of a changing set of processes; never goes back when one of them ends."""

    def __init__(self) -> None:
        self._ended_ticks = 0
        self._ticks: dict[tuple[int, int], int] = {}
        self._ticks_per_second = os.sysconf("SC_CLK_TCK")

    def add(self, processes: Iterable[Process]) -> float:
        """Takes in the processes there are now and returns the seconds of all that ever were."""
        now = {(each.pid, each.start_ticks): each.cpu_ticks for each in processes}
        self._ended_ticks += sum(ticks for key, ticks in self._ticks.items() if key not in now)
        self._ticks = {key: max(ticks, self._ticks.get(key, 0)) for key, ticks in now.items()}
        return self.seconds

    @property
    def seconds(self) -> float:
        """As last seen."""
        return (self._ended_ticks + sum(self._ticks.values())) / self._ticks_per_second


def boot_id(proc: str = "/proc") -> str:
    """What tells this boot of the machine from others."""
    with open(f"{proc}/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def command_name(command: list[str]) -> str:
    """What a command is called: its words before the first option. Options may hold secrets, so none is shown."""
    words = [os.path.basename(command[0])] if command else []
    rest = command[1:]
    if rest[:1] == ["-m"]:
        words += rest[:2]
        rest = rest[2:]
    for word in rest[:2]:
        if word.startswith("-"):
            break
        words.append(word)
    return " ".join(words)[:200]


def send(pid: int, signo: int) -> None:
    """A signal to one that may have ended."""
    try:
        os.kill(pid, signo)
    except ProcessLookupError:
        # Ended between the look and the signal, which is what is waited for.
        return


def kill(processes: Iterable[Process], signo: int) -> None:
    """A signal to each."""
    for each in processes:
        send(each.pid, signo)


def left_of_session(leader: int | None, start_ticks: int) -> list[Process]:
    """What lives of the session that `leader` (started at `start_ticks`) made, with all descendants."""
    if leader is None:
        return []
    table = process_table()
    if leader in table and table[leader].start_ticks != start_ticks:
        # The pid is another's by now; it could not be while the session lived.
        return []
    members = [e for e in table.values() if e.session == leader and e.start_ticks >= start_ticks and e.state != "Z"]
    found = {each.pid: each for each in members}
    for each in members:
        found |= {below.pid: below for below in descendants(table, each.pid)}
    return list(found.values())


def sender(pid: int, uid: int) -> str:
    """Who sent a signal, in words."""
    if pid == 0:
        # The kernel itself (a terminal's ^C), or a process outside the container.
        return "the terminal or from outside the container"
    try:
        with open(f"/proc/{pid}/comm") as file:
            name = file.read().strip()
    except OSError:
        name = "ended"
    return f"pid {pid} ({name}), uid {uid}"
