"""Lines that are too long, are no text, or are no JSON (faults 12 and 13)."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dsobs import plugins
from dsobs.logs import metrics
from dsobs.logs.record import Common, Lines, LogFile, Record
from dsobs.plugins import load
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import append, lines, settings, ship_once, shipping, until


@pytest.fixture
async def server() -> AsyncIterator[ElasticsearchStandIn]:
    async with ElasticsearchStandIn() as stand_in:
        yield stand_in


def count(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def documents(server: ElasticsearchStandIn) -> list[dict[str, Any]]:
    return sorted(server.documents.values(), key=lambda doc: int(doc["log.offset"]))


@pytest.mark.parametrize("length", [1025, 5000, 256 * 1024, 1024 * 1024 + 17])
@pytest.mark.fault(12)
async def test_an_over_long_line_is_cut_marked_and_counted_and_the_file_goes_on(
    server: ElasticsearchStandIn, tmp_path: Path, length: int
) -> None:
    log = tmp_path / "app.log"
    before = count("dsobs_log_faulty_lines_total", fault="cut"), count("dsobs_log_lost_bytes_total", reason="cut")
    append(log, lines(1) + "x" * length + "\n" + lines(2))
    await ship_once(settings(server.url, log, max_line_bytes=1024), tmp_path / "state")
    first, cut, last = documents(server)
    assert (first["message"], last["message"]) == ("line 1", "line 2")
    assert cut["message"] == "x" * 1024
    assert "longer than logs.max_line_bytes" in cut["error.message"]
    assert count("dsobs_log_faulty_lines_total", fault="cut") - before[0] == 1
    assert count("dsobs_log_lost_bytes_total", reason="cut") - before[1] == length - 1024


@pytest.mark.fault(12)
async def test_an_over_long_line_gets_the_same_id_however_it_was_written(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, lines(1) + "x" * 3000)
    async with shipping(settings(server.url, log, max_line_bytes=1024), tmp_path / "state"):
        await until(lambda: len(server.documents) == 2)
    # The line is not done with: it is begun again after the restart, and is there already.
    async with shipping(settings(server.url, log, max_line_bytes=1024), tmp_path / "state"):
        await until(lambda: server.duplicates == 1)
        append(log, "x" * 3000 + "\n" + lines(2))
        await until(lambda: len(server.documents) == 3)
    async with shipping(settings(server.url, log, max_line_bytes=1024), tmp_path / "other"):
        await until(lambda: server.duplicates == 4)
    assert len(server.documents) == 3


@pytest.mark.fault(13)
async def test_what_is_not_utf_8_or_holds_nul_is_shipped_raw_with_an_error_field(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, b"line 1 \xff\xfe\nline 2 \0 nul\nline 3\n")
    await ship_once(settings(server.url, log), tmp_path / "state")
    first, second, third = documents(server)
    assert first["message"] == "line 1 \ufffd\ufffd"
    assert "not UTF-8" in first["error.message"]
    assert second["message"] == "line 2 \0 nul"
    assert "error.message" not in third


@pytest.mark.fault(7, 13)
async def test_a_hole_left_by_a_writer_that_goes_on_at_its_old_offset_is_no_record(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    with log.open("wb") as writer:
        writer.write(lines(1).encode())
        writer.flush()
        async with shipping(settings(server.url, log), tmp_path / "state"):
            await until(lambda: len(server.documents) == 1)
            writer.truncate(0)
            writer.seek(700_000)
            writer.write(lines(2).encode())
            writer.flush()
            await until(lambda: len(server.documents) == 2)
    assert sorted(server.messages()) == ["line 1", "line 2"]


@pytest.mark.fault(13)
async def test_lines_that_are_no_json_are_shipped_raw_with_an_error_field(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, b'{"@timestamp":"2026-11-24T08:00:00Z","message":"good"}\n{"half": \n[1, 2]\n\n"text"\n{"a":\xff}\n')
    await ship_once(settings(server.url, f"json:{log}"), tmp_path / "state")
    found = documents(server)
    assert [doc["message"] for doc in found] == ["good", '{"half": ', "[1, 2]", '"text"', '{"a":\ufffd}']
    assert ["error.message" in doc for doc in found] == [False, True, True, True, True]
    assert all(doc["host.name"] == "host-1" and doc["@timestamp"] for doc in found)


async def test_fields_of_a_line_stay_and_win_over_those_of_dsobs(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(
        log,
        b'{"@timestamp":"2026-11-24T08:00:00Z","host":{"name":"own","x":1},"log.offset":7,"n":18446744073709551615}\n',
    )
    await ship_once(settings(server.url, f"json:{log}", service="vllm", labels=("cluster=eu-1",)), tmp_path / "state")
    (found,) = documents(server)
    assert found["host"] == {"name": "own", "x": 1}
    assert "host.name" not in found
    assert found["log.offset"] == 7
    assert found["n"] == 18446744073709551615
    assert found["service.name"] == "vllm"
    assert found["labels.cluster"] == "eu-1"
    assert found["log.file.path"] == str(log)


async def test_the_last_line_of_a_whole_file_is_sent_without_its_end_and_again_if_its_end_should_come(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, lines(1) + "line 2")
    shipper = await ship_once(settings(server.url, log), tmp_path / "state")
    assert shipper.unfinished == {str(log): 6}
    assert sorted(server.messages()) == ["line 1", "line 2"]
    append(log, "2\n")
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert sorted(server.messages()) == ["line 1", "line 2", "line 22"]


class Broken:
    """A format whose parser raises, as a plugin may."""

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> "Broken":
        return self

    dataset = "broken"
    decided = ""
    fields: Mapping[str, Any] = {}
    held_from = None

    def parse(self, lines_: Lines) -> list[Record]:
        raise ZeroDivisionError

    def flush(self) -> list[Record]:
        return []


async def test_a_format_that_raises_neither_holds_up_its_file_nor_loses_a_line(
    server: ElasticsearchStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "load", lambda group, name: Broken if name == "broken" else load(group, name))
    append(tmp_path / "app.log", lines(1, 2))
    await ship_once(settings(server.url, f"broken:{tmp_path / 'app.log'}"), tmp_path / "state")
    assert sorted(server.messages()) == ["line 1", "line 2"]
