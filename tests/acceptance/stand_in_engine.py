"""A small engine, up in a fifth of a second: `python -m tests.acceptance.stand_in_engine PORT`.

It says by vLLM's names that it works, until SIGUSR1: from then on nothing moves and no completion is answered, while
`/health` still says 200. Its successor works again.
"""

import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STARTED = time.time()
MODEL = "stand-in"
hung = threading.Event()
_hung_at = 0.0


def hang(*_: object) -> None:
    """Stops all progress."""
    global _hung_at
    _hung_at = time.time()
    hung.set()


def page() -> str:
    """`/metrics`, as vLLM names it."""
    worked = (_hung_at if hung.is_set() else time.time()) - STARTED
    names = f'engine="0",model_name="{MODEL}"'
    return "\n".join(
        [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{names}}} 4",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{{{names}}} 2",
            "# TYPE vllm:kv_cache_usage_perc gauge",
            f"vllm:kv_cache_usage_perc{{{names}}} 0.25",
            "# TYPE vllm:generation_tokens counter",
            f"vllm:generation_tokens_total{{{names}}} {int(worked * 1000) + 1}",
            "# TYPE vllm:iteration_tokens_total histogram",
            f"vllm:iteration_tokens_total_count{{{names}}} {int(worked * 100) + 1}",
            "# TYPE process_start_time_seconds gauge",
            f"process_start_time_seconds {STARTED}",
            "",
        ]
    )


class Handler(BaseHTTPRequestHandler):
    """What dsobs asks for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def _answer(self, body: str, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        """Page, health and models answer in a hang too."""
        if self.path == "/metrics":
            self._answer(page(), "text/plain; version=0.0.4")
        elif self.path == "/v1/models":
            self._answer(json.dumps({"data": [{"id": MODEL}]}))
        else:
            self._answer("")

    def do_POST(self) -> None:
        """A completion, at once or never."""
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if hung.is_set():
            threading.Event().wait()
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        self._answer(json.dumps({"choices": [{"text": ".", "finish_reason": "length"}], "usage": usage}))


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, hang)
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()
