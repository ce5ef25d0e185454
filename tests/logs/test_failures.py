"""A format, a transform, the encoder or the sink that raises costs one record at most, and no file waits for it."""

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from dsobs import plugins
from dsobs.logs import metrics, ship
from dsobs.logs.record import Common, Lines, LogFile, Record
from dsobs.logs.replay import replay
from dsobs.logs.sinks import Answer, SinkSettings
from dsobs.logs.sinks.elasticsearch import ElasticsearchSink
from dsobs.plugins import load
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import append, lines, named, settings, ship_once, shipping, until


@pytest.fixture
async def server() -> AsyncIterator[ElasticsearchStandIn]:
    async with ElasticsearchStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


def count(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def letters(state: Path) -> list[dict[str, Any]]:
    path = state / "dead-letters.ndjson"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


class Pairs:
    """A format whose records are of two lines each; it raises at a line with `bad`, and in `flush` as it is told."""

    dataset = "pairs"
    decided = ""
    fields: Mapping[str, Any] = {}
    flush_raises = False

    def __init__(self) -> None:
        self._first: tuple[int, bytes] | None = None

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> "Pairs":
        return Pairs()

    @property
    def held_from(self) -> int | None:
        return self._first[0] if self._first else None

    def parse(self, lines_: Lines) -> list[Record]:
        records: list[Record] = []
        start = lines_.start
        for line in lines_.lines:
            if b"bad" in line:
                raise ZeroDivisionError
            if self._first is None:
                self._first = (start, line)
            else:
                raw = self._first[1] + b"\n" + line
                records.append((self._first[0], raw, {"@timestamp": "2026-11-24T08:00:00Z", "message": raw.decode()}))
                self._first = None
            start += len(line) + 1
        return records

    def flush(self) -> list[Record]:
        if self.flush_raises:
            raise ZeroDivisionError
        first, self._first = self._first, None
        return [(*first, {"@timestamp": "2026-11-24T08:00:00Z", "message": first[1].decode()})] if first else []


def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "load", lambda group, name: Pairs if name == "pairs" else load(group, name))


@pytest.mark.parametrize("block", [1, 20, 256 * 1024])
async def test_a_line_that_its_format_fails_on_is_sent_as_text_and_no_other(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    formats(monkeypatch)
    monkeypatch.setattr("dsobs.logs.tail.BLOCK_BYTES", block)
    before = (
        count("dsobs_log_failures_total", part="format"),
        count("dsobs_log_faulty_lines_total", fault="format_failed"),
    )
    append(log, "a\nb\nc\nbad\nd\ne\nf\ng\nbad\nbad\nh\n")
    await ship_once(settings(server.url, f"pairs:{log}", max_line_bytes=1024), tmp_path / "state")
    assert sorted(server.messages()) == ["a\nb", "bad", "bad", "bad", "c", "d\ne", "f\ng", "h"]
    marked = [
        doc["message"] for doc in server.documents.values() if "its format failed" in doc.get("error.message", "")
    ]
    assert marked == ["bad"] * 3
    assert count("dsobs_log_failures_total", part="format") - before[0] == 3
    assert count("dsobs_log_faulty_lines_total", fault="format_failed") - before[1] == 3
    # It is done with.
    await ship_once(settings(server.url, f"pairs:{log}", max_line_bytes=1024), tmp_path / "state")
    assert server.duplicates == 0


async def test_what_a_format_held_when_its_flush_fails_is_sent_as_text(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats(monkeypatch)
    monkeypatch.setattr(Pairs, "flush_raises", True)
    append(log, "a\nb\nc\n")
    async with shipping(settings(server.url, f"pairs:{log}"), tmp_path / "state"):
        await until(lambda: sorted(server.messages()) == ["a\nb", "c"])
        append(log, "d\nbad\ne\nf\n")
        await until(lambda: sorted(server.messages()) == ["a\nb", "bad", "c", "d", "e\nf"])


class Choosy:
    """A transform that fails on some records."""

    needs_fields = True

    def __init__(self, fails: Callable[[dict[str, Any]], bool]) -> None:
        self._fails = fails

    def apply(self, records: list[Record]) -> list[Record]:
        for _, _, document in records:
            assert isinstance(document, dict)
            if self._fails(document):
                raise ZeroDivisionError("no such thing")
            document["labels.seen"] = True
        return records


def transforms(monkeypatch: pytest.MonkeyPatch, fails: Callable[[dict[str, Any]], bool]) -> None:
    monkeypatch.setattr(ship, "open_transforms", lambda _: [Choosy(fails)])


@pytest.mark.parametrize("bulk_records", [1, 7, 1000])
async def test_a_record_that_a_transform_fails_on_goes_to_the_dead_letters_and_no_other(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bulk_records: int
) -> None:
    transforms(monkeypatch, lambda document: document["message"] in named(3, 50))
    before = (
        count("dsobs_log_failures_total", part="transform"),
        count("dsobs_log_records_total", outcome="dead_letter"),
    )
    append(log, lines(*range(100)))
    wanted = settings(server.url, log, bulk_records=bulk_records)
    await ship_once(wanted, tmp_path / "state")
    assert set(server.messages()) == set(named(*range(100))) - set(named(3, 50))
    assert all(doc["labels.seen"] for doc in server.documents.values())
    three, fifty = letters(tmp_path / "state")
    assert (three["document"]["message"], fifty["document"]["message"]) == ("line 3", "line 50")
    assert (three["type"], three["reason"]) == ("transform_failed", "Choosy: ZeroDivisionError: no such thing")
    assert three["action"]["create"]["_id"]
    assert count("dsobs_log_failures_total", part="transform") - before[0] == 2
    assert count("dsobs_log_records_total", outcome="dead_letter") - before[1] == 2
    append(log, lines(100))
    await ship_once(wanted, tmp_path / "state")
    assert "line 100" in server.messages()
    assert (server.duplicates, len(letters(tmp_path / "state"))) == (0, 2)


async def test_a_transform_that_fails_on_everything_holds_up_no_file(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transforms(monkeypatch, lambda _: True)
    append(log, lines(*range(3000)))
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert [one["document"]["message"] for one in letters(tmp_path / "state")] == named(*range(3000))
    assert server.messages() == []


async def test_a_record_that_failed_is_not_done_with_before_it_is_with_the_dead_letters(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transforms(monkeypatch, lambda document: document["message"] == "line 1")
    append(log, lines(*range(5)))
    state = tmp_path / "state"
    (state / "dead-letters.ndjson").mkdir(parents=True)
    async with shipping(settings(server.url, log), state) as shipper:
        await until(lambda: (shipper.delivery.trouble or ("",))[0] == "dead_letters")
        assert shipper.status().acknowledged_bytes == 0
        (state / "dead-letters.ndjson").rmdir()
        await until(lambda: shipper.status().acknowledged_bytes == len(lines(*range(5))))
        assert shipper.delivery.trouble is None
    assert [one["document"]["message"] for one in letters(state)] == ["line 1"]
    assert sorted(server.messages()) == named(0, 2, 3, 4)


async def test_a_document_that_can_not_be_encoded_goes_to_the_dead_letters_as_text(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(document: dict[str, Any]) -> bool:
        if document["message"] == "line 2":
            document["itself"] = document
        return False

    transforms(monkeypatch, spoil)
    append(log, lines(1, 2, 3))
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert sorted(server.messages()) == named(1, 3)
    (letter,) = letters(tmp_path / "state")
    assert (letter["document"]["message"], letter["type"]) == ("line 2", "encoder_failed")


async def test_a_letter_that_a_transform_failed_on_goes_through_it_when_it_is_sent_again(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    transforms(monkeypatch, lambda document: document["message"] in named(1, 2))
    append(log, lines(1, 2, 3))
    await ship_once(settings(server.url, log), state)
    # One of the two is mended.
    mended = [Choosy(lambda document: document["message"] == "line 2")]
    sink = ElasticsearchSink(SinkSettings(settings(server.url), state))
    done = await replay(state, sink, 1795507200.0, mended)
    await sink.close()
    assert (done.sent, done.refused) == (1, 1)
    assert sorted(server.messages()) == named(1, 3)
    assert all(doc["labels.seen"] for doc in server.documents.values())
    assert [one["document"]["message"] for one in letters(state)] == ["line 2"]


async def test_a_sink_that_raises_is_tried_again(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, failures = ElasticsearchSink.send, iter(range(3))

    async def failing(sink: ElasticsearchSink, *arguments: Any) -> Answer:
        if next(failures, None) is not None:
            raise ZeroDivisionError
        return await send(sink, *arguments)

    monkeypatch.setattr(ElasticsearchSink, "send", failing)
    append(log, lines(1, 2))
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert sorted(server.messages()) == named(1, 2)
