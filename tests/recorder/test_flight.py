"""The flight recorder and the form of its records."""

import gzip
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs.model.observation import Failure
from dsobs.recorder.behind import BACKLOG, RecordsBehind
from dsobs.recorder.flight import FlightRecorder, prune_bundles
from dsobs.recorder.records import RecordError, failed_scrape_of, failure_of_text, health_of, read_records
from dsobs.telemetry import RECORDER_DROPPED


def record(t: float, size: int = 100) -> dict[str, Any]:
    return {
        "t": t,
        "health": 200,
        "metrics": "a" * size + "\n",
        "health_s": 0.1,
        "metrics_s": 0.1,
        "nvml": None,
        "nvml_s": None,
    }


def test_what_was_written_is_read_back_in_order(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, 1_000_000)
    for t in range(1000, 1200):
        recorder.write(record(t))
    recorder.close()
    recorder.close()
    assert [r["t"] for r in recorder.recent(1100)] == list(range(1100, 1200))


def test_what_sigkill_leaves_is_readable_to_the_last_record(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, 1_000_000)
    for t in range(1000, 1010):
        recorder.write(record(t))
    (segment,) = tmp_path.glob("flight-*")
    assert [r["t"] for r in read_records(segment)] == list(range(1000, 1010))
    recorder.close()


def test_a_copy_of_open_and_cut_off_segments_is_one_whole_recording(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path / "flight", 1_000_000)
    for t in range(1000, 1100):
        recorder.write(record(t))
    first, *_ = sorted((tmp_path / "flight").glob("flight-*"))
    first.write_bytes(first.read_bytes()[:-20])
    recorder.copy_recent(0, tmp_path / "copy.jsonl.gz")
    found = [r["t"] for r in read_records(tmp_path / "copy.jsonl.gz")]
    assert found[:59] == list(range(1000, 1059))
    assert found[-40:] == list(range(1060, 1100))
    recorder.close()


def test_the_recorder_stays_within_its_bound_and_drops_the_oldest(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, 20_000)
    for t in range(1000, 3000):
        recorder.write({**record(t), "metrics": f"{t}" * 50 + "\n"})
    recorder.close()
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 25_000
    kept = [r["t"] for r in recorder.recent(0)]
    assert kept[-1] == 2999
    assert kept[0] > 1000


def test_a_bound_of_zero_records_nothing(tmp_path: Path) -> None:
    FlightRecorder(tmp_path / "f", 0).write(record(1))
    assert not (tmp_path / "f").exists()


def test_a_disk_that_can_not_be_written_costs_records_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = FlightRecorder(tmp_path / "file" / "flight", 1000)
    recorder.write(record(1))
    recorder.write(record(2))
    recorder.close()


def test_old_bundles_go_first_and_the_newest_stays(tmp_path: Path) -> None:
    for name in ("20260101", "20260102", "20260103"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(b"0" * 1000)
    prune_bundles(tmp_path, 1500)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["20260103"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", ":1: no JSON object a line; is this a recording?"),
        (b"[1]\n", ":1: a record is a JSON object, not list"),
        (b'{"t": 1}\nnonsense\n', ":2: not JSON"),
        (b'{"metrics": ""}\n', ":1: a record needs `t`, Unix seconds"),
        (b'{"t": "x"}\n', ":1: a record needs `t`, Unix seconds"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_no_recording_is_named_with_its_line(
    tmp_path: Path, body: bytes, message: str, packed: bool
) -> None:
    file = tmp_path / "x.jsonl.gz"
    file.write_bytes(gzip.compress(body) if packed else body)
    with pytest.raises(RecordError) as error:
        list(read_records(file))
    assert str(error.value).startswith(f"{file}{message}")


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("URLError(ConnectionRefusedError(111, 'Connection refused'))", Failure.REFUSED),
        ("TimeoutError('timed out')", Failure.TIMEOUT),
        ("<urlopen error timed out>", Failure.TIMEOUT),
        ("HTTP Error 503: Service Unavailable", Failure.HTTP_STATUS),
        ("ConnectionResetError(104, 'reset by peer')", Failure.UNREACHABLE),
        ("too_large: over 16 MiB", Failure.TOO_LARGE),
    ],
)
def test_errors_in_words_are_understood(text: str, failure: Failure) -> None:
    assert failure_of_text(text) is failure
    scrape = failed_scrape_of({"t": 1, "metrics": text, "metrics_s": 0.1})
    assert scrape.failure is failure
    assert not scrape.ok


def test_health_of_a_record_is_a_status_or_a_failure() -> None:
    assert health_of({"t": 1, "health": None}) is None
    ok = health_of({"t": 1, "health": 200, "health_s": 0.1})
    assert ok is not None
    assert ok.ok
    bad = health_of({"t": 1, "health": "URLError(ConnectionRefusedError(111, 'Connection refused'))"})
    assert bad is not None
    assert bad.failure is Failure.REFUSED


@given(
    st.dictionaries(st.text(max_size=10), st.none() | st.text(max_size=10) | st.integers() | st.floats(allow_nan=False))
)
def test_no_record_whatever_breaks_the_reader_of_a_failed_scrape(values: dict[str, Any]) -> None:
    scrape = failed_scrape_of({**values, "t": 1.0})
    assert scrape.failure is not None


def test_a_copy_takes_no_memory_by_the_size_of_what_it_copies(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path / "flight", 1_000_000)
    for t in range(1000, 1090):
        recorder.write({**record(t), "metrics": "a 1\n" * 50_000})
    tracemalloc.start()
    try:
        recorder.copy_recent(0, tmp_path / "copy.jsonl.gz")
        copying = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        times = [r["t"] for r in read_records(tmp_path / "copy.jsonl.gz")]
        reading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 18 MB in all, 0.2 MB a record.
    assert copying < 2_000_000
    assert reading < 6_000_000
    assert times == list(range(1000, 1090))
    recorder.close()


def test_of_a_damaged_segment_a_copy_has_what_can_be_read(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path / "flight", 1_000_000)
    for t in range(1000, 1090):
        recorder.write(record(t))
    recorder.close()
    first, _ = sorted((tmp_path / "flight").glob("flight-*"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = bytes(8)
    first.write_bytes(data)
    recorder.copy_recent(0, tmp_path / "copy.jsonl.gz")
    times = [r["t"] for r in read_records(tmp_path / "copy.jsonl.gz")]
    assert times[-30:] == list(range(1060, 1090))


class HangingDisk(FlightRecorder):
    """A recorder whose first write waits until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 1_000_000)
        self.begun = threading.Event()
        self.back = threading.Event()

    def write(self, record: dict[str, Any]) -> None:
        self.begun.set()
        assert self.back.wait(30)
        super().write(record)


def test_a_disk_that_hangs_costs_records_and_holds_up_nobody(tmp_path: Path) -> None:
    recorder = HangingDisk(tmp_path)
    behind = RecordsBehind(recorder)
    before = RECORDER_DROPPED.labels("behind")._value.get()
    behind.write(record(1000.0))
    assert recorder.begun.wait(10)
    for n in range(1, BACKLOG + 20):
        behind.write(record(1000.0 + n))
    behind.close(0.05)
    recorder.back.set()
    behind.close(10)
    assert RECORDER_DROPPED.labels("behind")._value.get() == before + 19
    assert [r["t"] for r in recorder.recent(0)] == [1000.0 + n for n in range(BACKLOG + 1)]
    behind.close()
