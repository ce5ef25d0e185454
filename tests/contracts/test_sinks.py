"""The sinks, and the stand-in for Elasticsearch, hold to the contract; tests/real has the real Elasticsearch."""

import asyncio
import contextlib
import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dsobs.config.logs import Elasticsearch, LogFileSink, Logs
from dsobs.config.otlp import OtlpLogs
from dsobs.logs.sinks import Sink, SinkSettings, open_sink
from tests.contracts.sink_contract import SinkContract, Taken
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.otlp_receiver import OtlpReceiver, attributes, value_of


def taken_of(lines: bytes) -> list[Taken]:
    """Of the form that files and stdout have."""
    found = []
    for line in lines.splitlines():
        document = orjson.loads(line)
        found.append(Taken(document.pop("_index"), document.pop("_id"), document))
    return found


class TestStandIn(SinkContract):
    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Sink]:
        async with ElasticsearchStandIn() as self.server:
            logs = Logs(elasticsearch=Elasticsearch(urls=(self.server.url,), timeout=10.0))
            yield open_sink("elasticsearch", SinkSettings(logs, Path("/nonexistent")))

    async def taken(self) -> list[Taken]:
        return [Taken(index, id_, document) for (index, id_), document in self.server.documents.items()]

    async def go(self) -> None:
        await self.server.down()


class TestOtlp(SinkContract):
    keeps_ids = False

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Sink]:
        async with OtlpReceiver() as self.receiver:
            logs = Logs(otlp=OtlpLogs(endpoint=self.receiver.url))
            yield open_sink("otlp", SinkSettings(logs, Path("/nonexistent")))

    async def taken(self) -> list[Taken]:
        found = []
        for _, record in self.receiver.records():
            fields = attributes(record.attributes)
            document: dict[str, Any] = {"message": value_of(record.body)}
            for name, value in fields.items():
                head, _, tail = name.rpartition(".")
                (document.setdefault(head, {}) if head else document)[tail] = value
            found.append(Taken(fields["elasticsearch.index"], fields["log.record.uid"], document))
        return found

    async def go(self) -> None:
        await self.receiver.down()


class TestFile(SinkContract):
    keeps_ids = False

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sink" / "records.ndjson"

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Sink]:
        logs = Logs(file=LogFileSink(path=self.path, max_bytes=64 * 1024 * 1024))
        yield open_sink("file", SinkSettings(logs, self.path.parent))

    async def taken(self) -> list[Taken]:
        return taken_of(self.path.read_bytes())

    async def go(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self.path.parent.write_text("a file where the folder was")


class TestStdout(SinkContract):
    keeps_ids = False

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Sink]:
        """A pipe in place of stdout, that a thread reads."""
        read_end, write_end = os.pipe()
        self.got: list[bytes] = []
        self.read_end = read_end
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        with os.fdopen(write_end, "w") as stdout, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            self.made = open_sink("stdout", SinkSettings(Logs(), Path("/nonexistent")))
        try:
            yield self.made
        finally:
            await self.made.close()
            await asyncio.to_thread(self.reader.join)

    def _read(self) -> None:
        with os.fdopen(self.read_end, "rb", buffering=0) as pipe:
            while data := pipe.read(65536):
                self.got.append(data)
                if self.got[-1].startswith(b"stop"):
                    return

    async def taken(self) -> list[Taken]:
        await self.made.close()
        await asyncio.to_thread(self.reader.join)
        return taken_of(b"".join(self.got))

    async def go(self) -> None:
        os.write(self.made._fd, b"stop\n")  # type: ignore[attr-defined]
        await asyncio.to_thread(self.reader.join)


async def test_stdout_that_is_not_read_holds_nothing_up_at_the_end() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stdout, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        sink = open_sink("stdout", SinkSettings(Logs(), Path("/nonexistent")))
    sending = asyncio.create_task(
        sink.send("logs", [b'{"create":{"_id":"1"}}\n{"message":"%b"}\n' % (b"x" * 200_000)], 1)
    )
    await asyncio.sleep(0.05)
    await asyncio.wait_for(sink.close(), 60)
    assert (await sending).status is None
    os.close(read_end)
