"""HTTP: the page in both exposition formats, and whether the exporter is alive and ready."""

import gzip
import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from dsobs_nvml.reader import Reader

LOG = logging.getLogger("dsobs.nvml")

MAX_CONNECTIONS = 32
"""More at a time are turned away: each has a thread."""
REQUEST_SECONDS = 10.0
"""A client that sends or takes nothing for so long is cut off."""
_TEXT = "text/plain; charset=utf-8"


class _Handler(BaseHTTPRequestHandler):
    server: "Server"
    timeout = REQUEST_SECONDS
    server_version = "dsobs-nvml"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        status, kind, content = self._content(self.path.partition("?")[0])
        self.send_response(status)
        if "gzip" in self.headers.get("Accept-Encoding", "") and len(content) > 1024:
            content = gzip.compress(content, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Vary", "Accept, Accept-Encoding")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _content(self, path: str) -> tuple[int, str, bytes]:
        reader = self.server.reader
        match path:
            case "/metrics":
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                return 200, kind, encode(self.server.registry)
            case "/livez" | "/healthz":
                # A driver that is away or does not answer is told on the page: a restart would not bring it back.
                dead = reader.dead()
                return (503, _TEXT, f"{dead}\n".encode()) if dead else (200, _TEXT, b"alive\n")
            case "/readyz":
                if not reader.tried:
                    return 503, _TEXT, b"the cards were not asked yet\n"
                return 200, _TEXT, f"{reader.snapshot().reason or 'cards are read'}\n".encode()
            case "/":
                return 200, _TEXT, b"dsobs-nvml: /metrics /livez /readyz\n"
            case _:
                return 404, _TEXT, b"no such page: /metrics /livez /readyz\n"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class names it so)
        LOG.debug("%s %s", self.address_string(), format % args)


class Server(ThreadingHTTPServer):
    """Serves `registry` from `start` to `stop`. OSError if the address can't be had."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry, reader: Reader) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.registry = registry
        self.reader = reader
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="dsobs-http", daemon=True)
        super().__init__(address, _Handler)

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        host, port = self.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def start(self) -> None:
        """Begins; once in a life."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; legal before `start` and twice."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, as long as there are not too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""
        LOG.debug("a request from %s failed (%s)", client_address, request, exc_info=True)
