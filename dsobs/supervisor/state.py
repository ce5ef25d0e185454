"""What is kept beside the socket: the status at the last change, and what the next supervisor needs."""

# pathlib and what it imports are 1 MiB of memory beside every engine, so paths are strings here.
# ruff: noqa: PTH105, PTH123

import json
import os
from typing import Any, NamedTuple

from dsobs.supervisor import VERSION
from dsobs.supervisor.processes import boot_id


class Earlier(NamedTuple):
    """What an earlier supervisor left."""

    history: list[float]
    """Starts of the last 24 h as of its last change, Unix seconds."""
    restart_count: int
    requests: dict[str, dict[str, Any] | None]
    same_boot: bool
    ended: bool
    """It saw its engine's end."""
    pid: int | None
    start_ticks: int
    planned_stop: str | None
    ended_at: float | None


class StateFile:
    """SOCKET.state, replaced as a whole."""

    def __init__(self, socket_path: str) -> None:
        self._path = f"{socket_path}.state"

    def save(self, status: dict[str, Any], start_ticks: int, requests: dict[str, dict[str, Any] | None]) -> None:
        """OSError as the disk gives it."""
        state = {
            "version": VERSION,
            "boot_id": boot_id(),
            "start_ticks": start_ticks,
            "requests": list(requests.items()),
            "status": status,
        }
        temporary = f"{self._path}.tmp"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(state, file)
        os.replace(temporary, self._path)

    def load(self) -> Earlier | None:
        """None where there was no supervisor before; ValueError with the reason for a file that can't be read."""
        try:
            with open(self._path, "rb") as file:
                state = json.load(file)
            if state["version"] != VERSION:
                raise ValueError(f"version {state['version']}")
            status = state["status"]
            return Earlier(
                history=[float(start) for start in status["history"]],
                restart_count=int(status["restart_count"]),
                requests=dict(state["requests"]),
                same_boot=state["boot_id"] == boot_id(),
                ended=status["phase"] == "done",
                pid=status["pid"],
                start_ticks=state["start_ticks"],
                planned_stop=status["planned_stop"],
                ended_at=status["ended_at"],
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{error}") from error

    def set_aside(self) -> None:
        """Keeps a file that can't be read, under another name."""
        os.replace(self._path, f"{self._path}.unreadable")
