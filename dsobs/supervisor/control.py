"""The control socket: one JSON object a line each way, and who may listen."""

# pathlib and what it imports are 1 MiB of memory beside every engine, so paths are strings here.
# ruff: noqa: PTH103, PTH108, PTH120

import contextlib
import fcntl
import json
import os
import selectors
import socket
from collections.abc import Callable
from typing import Any

from dsobs.supervisor import VERSION

REQUEST_BYTES = 64 * 1024
UNREAD_BYTES = 2 << 20
"""A client that asks on without reading that many bytes of answers is cut off."""
CONNECTIONS = 16


class Refusal(Exception):
    """A request that is not carried out; `kind` is the answer's `error`."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind

    def answer(self) -> dict[str, Any]:
        """As it is sent."""
        return {"ok": False, "error": self.kind, "detail": str(self)}


class Connection:
    """One client of the control socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.to_send = b""
        self.owed = 0
        """Answers that come later."""


class Control:
    """Listens at `path`, alone on it, and has `answer` say what to reply; None: `settle` does it later."""

    def __init__(
        self,
        path: str,
        selector: selectors.BaseSelector,
        answer: Callable[[dict[str, Any]], dict[str, Any] | None],
    ) -> None:
        self._path = path
        self._selector = selector
        self._answer = answer
        self._connections: list[Connection] = []
        self._lock: int | None = None
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Takes the lock and listens; OSError where another supervisor has it, or the path can't be had."""
        os.makedirs(os.path.dirname(self._path) or ".", mode=0o755, exist_ok=True)
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = None
            raise OSError(f"another supervisor owns {self._path}") from error
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(self._path)
        except OSError as error:
            listener.close()
            raise OSError(f"{self._path}: {error}") from error
        finally:
            os.umask(mask)
        self._listener = listener
        listener.listen(CONNECTIONS)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda _: self._on_connect())

    def close(self) -> None:
        """Hangs up on all; legal after an `open` that failed."""
        for connection in list(self._connections):
            self._hang_up(connection)
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def unlock(self) -> None:
        """Lets another supervisor have the socket."""
        if self._lock is not None:
            os.close(self._lock)

    def settle(self, answer: dict[str, Any]) -> None:
        """Sends the answer that clients have waited for."""
        for connection in [each for each in self._connections if each.owed]:
            owed, connection.owed = connection.owed, 0
            try:
                for _ in range(owed):
                    self._reply(connection, answer)
            except OSError:
                self._hang_up(connection)

    def _on_connect(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            # The client has gone again, or no descriptor is free; the next one may have more luck.
            return
        sock.setblocking(False)
        connection = Connection(sock)
        self._connections.append(connection)
        self._selector.register(sock, selectors.EVENT_READ, self._talker(connection))
        if len(self._connections) > CONNECTIONS:
            self._hang_up(next((each for each in self._connections if not each.owed), connection))

    def _talker(self, connection: Connection) -> Callable[[int], None]:
        def talk(events: int) -> None:
            try:
                if events & selectors.EVENT_WRITE:
                    self._send(connection)
                if events & selectors.EVENT_READ:
                    self._receive(connection)
            except OSError:
                self._hang_up(connection)

        return talk

    def _hang_up(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._selector.unregister(connection.sock)
            connection.sock.close()

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(REQUEST_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._hang_up(connection)
            return
        *lines, connection.received = (connection.received + data).split(b"\n")
        if len(connection.received) > REQUEST_BYTES:
            self._hang_up(connection)
            return
        for line in lines:
            if len(connection.to_send) > UNREAD_BYTES:
                self._hang_up(connection)
                return
            try:
                answer = self._answer(_request(line))
            except Refusal as refusal:
                answer = refusal.answer()
            if answer is None:
                connection.owed += 1
            else:
                self._reply(connection, answer)

    def _reply(self, connection: Connection, answer: dict[str, Any]) -> None:
        connection.to_send += json.dumps({"version": VERSION, **answer}).encode() + b"\n"
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            connection.to_send = connection.to_send[connection.sock.send(connection.to_send) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.to_send else 0)
        if connection in self._connections:
            self._selector.modify(connection.sock, events, self._talker(connection))


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError as error:
        raise Refusal("bad_request", f"no JSON: {error}") from error
    if not isinstance(request, dict) or request.get("version") != VERSION:
        raise Refusal("bad_request", f"this supervisor speaks version {VERSION}")
    return request
