"""A receiver for the benchmark: answers `_bulk` and OTLP over HTTP, and knows which of the numbered lines came.

python -m tests.benchmarks.shippers.sink LINES

Prints its port; `GET /arrived` answers how many different lines came. Its CPU time is not the shipper's.
"""

import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from isal import igzip

_NUMBER = re.compile(rb"#(\d{8})#")
_ITEM = b'{"create":{"status":201}}'


class Arrived:
    """Which lines came."""

    def __init__(self, lines: int) -> None:
        self.seen = bytearray(lines)
        self.count = 0
        self.lock = threading.Lock()

    def add(self, body: bytes) -> None:
        """Notes the numbers in a body."""
        seen = self.seen
        with self.lock:
            for number in map(int, _NUMBER.findall(body)):
                if not seen[number]:
                    seen[number] = 1
                    self.count += 1


def handler(arrived: Arrived) -> type[BaseHTTPRequestHandler]:
    """Takes requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer(str(arrived.count).encode())

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("Content-Encoding") == "gzip":
                body = igzip.decompress(body)  # type: ignore[no-untyped-call]
            arrived.add(body)
            if self.path.endswith("/v1/logs"):
                self._answer(b"", "application/x-protobuf")
                return
            items = b",".join([_ITEM] * (body.count(b"\n") // 2))
            self._answer(b'{"errors":false,"items":[%b]}' % items)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, body: bytes, kind: str = "application/json") -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("X-Elastic-Product", "Elasticsearch")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *_: object) -> None:
            """Not told."""

    return Handler


def main() -> None:
    """Serves until it is killed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(Arrived(int(sys.argv[1]))))
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
