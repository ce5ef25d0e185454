"""A real Prometheus 3 on loopback: started in a folder of its own, fed by remote write, asked over its HTTP API."""

import contextlib
import http.client
import json
import math
import struct
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dsobs.model.samples import Labels, labels_of
from dsobs.simulator.process import free_port

HERE = Path(__file__).parent
BUILD_SECONDS = 3600.0
START_SECONDS = 60.0
STOP_SECONDS = 30.0
BATCH = 200
"""Series in one remote-write request."""

Stream = tuple[Labels, Sequence[tuple[int, float]]]
"""Labels, and samples as (milliseconds, value)."""


def tool(name: str) -> Path:
    """The binary of `server`, `promtool`, `alertmanager` or `amtool`, built where it is not there yet."""
    built = subprocess.run(
        ["bash", str(HERE / "prometheus.sh"), name], check=True, stdout=subprocess.PIPE, timeout=BUILD_SECONDS
    )
    return Path(built.stdout.decode().strip())


class Answer(NamedTuple):
    """What the query API said."""

    error: str
    """Type and text of the refusal, "" for none."""
    kind: str
    """vector, scalar, matrix or string."""
    series: list[tuple[Labels, list[tuple[int, float]]]]
    """Labels and points; in the order of the answer."""


class Prometheus:
    """A server, started on entry and stopped on exit.

    `rules` is a rule file's text; `interval` seconds between its evaluations and scrapes; `target` the HOST:PORT that
    it scrapes, "" for none; `labelled` are more of them, each with labels that its series get.
    """

    def __init__(
        self,
        rules: str = "",
        interval: float = 60.0,
        target: str = "",
        labelled: Sequence[tuple[str, Mapping[str, str]]] = (),
    ) -> None:
        self.port = free_port()
        self._rules = rules
        self._interval = interval
        self._target = target
        self._labelled = labelled
        self._folder = tempfile.TemporaryDirectory(prefix="dsobs-prometheus-")
        self._process: subprocess.Popen[bytes] | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def __enter__(self) -> Self:
        binary = tool("server")
        folder = Path(self._folder.name)
        config = f"global:\n  evaluation_interval: {round(self._interval * 1000)}ms\n"
        if self._rules:
            (folder / "rules.yaml").write_text(self._rules)
            config += f"rule_files: [{folder / 'rules.yaml'}]\n"
        if self._target or self._labelled:
            every = f"scrape_interval: {round(self._interval * 1000)}ms"
            some = [f"{{targets: ['{self._target}']}}"] if self._target else []
            some += [json.dumps({"targets": [address], "labels": dict(of)}) for address, of in self._labelled]
            config += f"scrape_configs: [{{job_name: t, {every}, static_configs: [{', '.join(some)}]}}]\n"
        (folder / "prometheus.yml").write_text(config)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(binary),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--storage.tsdb.retention.time=100y",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--web.enable-remote-write-receiver",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._ask("GET", "/-/ready")[0] == 200:
                    return self
            self._connection.close()
            if self._process.poll() is not None or time.monotonic() > deadline:
                told = (folder / "log").read_text()
                self.__exit__(None, None, None)
                raise AssertionError(f"Prometheus did not become ready:\n{told}")
            time.sleep(0.1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._folder.cleanup()

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        self._connection.request(method, path, body, headers or {})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def write(self, streams: Iterable[Stream]) -> None:
        """Remote write, staleness markers and all other NaN bit for bit."""
        streams = list(streams)
        for at in range(0, len(streams), BATCH):
            body = _snappy(b"".join(_field(1, _stream(stream)) for stream in streams[at : at + BATCH]))
            headers = {
                "Content-Type": "application/x-protobuf",
                "Content-Encoding": "snappy",
                "X-Prometheus-Remote-Write-Version": "0.1.0",
            }
            status, told = self._ask("POST", "/api/v1/write", body, headers)
            assert status == 204, told.decode()

    def query(self, expression: str, t: float) -> Answer:
        """An instant query."""
        return self._query("/api/v1/query", {"query": expression, "time": repr(t)})

    def query_range(self, expression: str, start: float, end: float, step: float) -> Answer:
        """A range query."""
        return self._query(
            "/api/v1/query_range", {"query": expression, "start": repr(start), "end": repr(end), "step": repr(step)}
        )

    def get(self, path: str) -> Any:
        """The `data` of an API answer."""
        status, body = self._ask("GET", path)
        assert status == 200, body.decode()
        return json.loads(body)["data"]

    def _query(self, path: str, form: dict[str, str]) -> Answer:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        _, body = self._ask("POST", path, urllib.parse.urlencode(form).encode(), headers)
        told = json.loads(body)
        if told["status"] != "success":
            return Answer(f"{told['errorType']}: {told['error']}", "", [])
        kind, result = told["data"]["resultType"], told["data"]["result"]
        if kind in ("scalar", "string"):
            result = [{"metric": {}, "value": result}]
        series = [
            (labels_of(one["metric"]), [(round(t * 1000), _number(v)) for t, v in one.get("values") or [one["value"]]])
            for one in result
            if kind != "string"
        ]
        return Answer("", kind, series)


def _number(text: str) -> float:
    return {"NaN": math.nan, "+Inf": math.inf, "-Inf": -math.inf}.get(text) or float(text)


# Remote write 1.0: protobuf's wire format in snappy's block format, here without compression.


def _varint(number: int) -> bytes:
    out = bytearray()
    number &= (1 << 64) - 1
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _stream(stream: Stream) -> bytes:
    labels, samples = stream
    return b"".join(
        [_field(1, _field(1, name.encode()) + _field(2, value.encode())) for name, value in labels]
        + [_field(2, b"\x09" + struct.pack("<d", value) + b"\x10" + _varint(t)) for t, value in samples]
    )


def _snappy(content: bytes) -> bytes:
    return _varint(len(content)) + b"".join(_literals(content))


def _literals(content: bytes) -> Iterator[bytes]:
    for at in range(0, len(content), 65_536):
        piece = content[at : at + 65_536]
        yield bytes([61 << 2]) + struct.pack("<H", len(piece) - 1) + piece
