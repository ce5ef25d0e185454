"""What `dsobs logs search` finds in the file sink's lines."""

import os
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs.cli import main
from dsobs.logs import search
from dsobs.logs.search import Question, about_incident, find, level_of, sink_files, time_of, value_of

T0 = 1795507200.0  # 2026-11-24T08:00:00Z


def line(number: int, **fields: Any) -> bytes:
    base = {
        "_index": "logs-dsobs.vllm-default",
        "_id": f"k-{number}",
        "@timestamp": f"2026-11-24T08:{number // 60:02}:{number % 60:02}.000Z",
        "message": f"line {number}",
    }
    return orjson.dumps({**base, **{name.replace("__", "."): value for name, value in fields.items()}})


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(one + b"\n" for one in lines))
    return path


def messages(files: list[Path], **question: Any) -> list[str]:
    return [document["message"] for _, document in find(files, Question(**question))]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write(
        tmp_path / "records.ndjson",
        line(0, log__level="info", labels={"model": "r1"}),
        line(1, log__level="warning", message="KV cache usage high"),
        line(2, log={"level": "ERROR"}, message="CUDA out of memory"),
        line(3, level="fatal", message="engine dead", http__response__status_code=500),
        line(4, message="Größe: 3 GiB\nsecond"),
        b"not json \xff",
        b"[1]",
        line(5, labels__incident_id="20261124T080005Z-3f9c", message="incident opened"),
        line(7, labels__incident_id="20261124T080005Z-3f9c", message="incident closed"),
        line(9),
    )


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ({"texts": ("out of memory",)}, ["CUDA out of memory"]),
        ({"texts": ("out", "CUDA")}, ["CUDA out of memory"]),
        ({"texts": ("cuda",)}, []),
        ({"texts": ("cuda",), "ignore_case": True}, ["CUDA out of memory"]),
        ({"texts": ("Größe",)}, ["Größe: 3 GiB\nsecond"]),
        ({"texts": ("3 GiB\nsec",)}, ["Größe: 3 GiB\nsecond"]),
        ({"texts": ("message",)}, []),
        ({"level": "warning"}, ["KV cache usage high", "CUDA out of memory", "engine dead"]),
        ({"level": "critical"}, ["engine dead"]),
        ({"fields": (("labels.model", "r1"),)}, ["line 0"]),
        ({"fields": (("http.response.status_code", "500"),)}, ["engine dead"]),
        ({"fields": (("labels.model", "r"),)}, []),
        ({"since": T0 + 7}, ["incident closed", "line 9"]),
        ({"until": T0}, ["line 0"]),
        ({"since": T0 + 1, "until": T0 + 2, "texts": ("a",)}, ["KV cache usage high"]),
    ],
)
def test_all_that_is_asked_must_hold(records: Path, question: dict[str, Any], found: list[str]) -> None:
    assert messages([records], **question) == found


def test_an_incident_spans_from_before_its_first_record_to_its_last(records: Path) -> None:
    assert about_incident([records], "20261124T0800", 3.0) == (T0 + 2, T0 + 7)
    assert about_incident([records], "20261125", 3.0) is None


def test_a_record_that_is_there_twice_is_found_once(tmp_path: Path) -> None:
    files = [write(tmp_path / "a", line(1), line(2)), write(tmp_path / "b", line(2), line(3))]
    assert messages(files) == ["line 1", "line 2", "line 3"]


def test_files_are_read_oldest_first_and_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.ndjson"
    for name in ("records.ndjson", "records.ndjson.1", "records.ndjson.10", "records.ndjson.2", "records.ndjson.gz"):
        (tmp_path / name).touch()
    assert [one.name.removeprefix("records.ndjson") for one in sink_files(path)] == [".10", ".2", ".1", ""]
    assert sink_files(tmp_path / "no.ndjson") == []


def test_letters_written_as_escapes_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "records.ndjson", b'{"message":"out \\u006ff memory"}')
    assert messages([path], texts=("out of memory",)) == ["out of memory"]


def test_lines_across_blocks_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK_BYTES", 50)
    path = write(tmp_path / "records.ndjson", *(line(number) for number in range(20)))
    assert messages([path]) == [f"line {number}" for number in range(20)]
    assert messages([path], texts=("line 1",)) == ["line 1", *(f"line {number}" for number in range(10, 20))]


@given(
    st.lists(st.text(max_size=12), min_size=1, max_size=8),
    st.lists(st.text(min_size=1, max_size=4), max_size=2),
    st.booleans(),
)
def test_the_literal_filter_leaves_out_nothing(texts: list[str], wanted: list[str], fold: bool) -> None:
    lines = [orjson.dumps({"message": text}) for text in texts if text.isprintable()]
    question = Question(texts=tuple(wanted), ignore_case=fold)
    block = b"".join(one + b"\n" for one in lines)
    candidates = list(search._candidates(block, question.literals(), fold))
    assert [one for one in lines if question.accepts(orjson.loads(one))] == [
        one for one in candidates if one and question.accepts(orjson.loads(one))
    ]


def test_values_are_found_dotted_and_nested() -> None:
    document = {"a.b": {"c.d": 1}, "a": {"x": 2}}
    assert value_of(document, "a.b.c.d") == 1
    assert value_of(document, "a.x") == 2
    assert value_of(document, "a.y") is None


def test_what_a_record_does_not_say_is_unknown() -> None:
    assert level_of({}) == level_of({"level": "odd"}) == ""
    assert time_of({}) is time_of({"@timestamp": "yesterday"}) is None
    assert time_of({"@timestamp": 1500}) == 1.5
    assert time_of({"@timestamp": "1970-01-01T00:00:01.5"}) == 1.5


# The command.


def run(capsysbinary: pytest.CaptureFixture[bytes], *words: str) -> tuple[int, str, str]:
    status = main(["logs", "search", *words])
    out, err = capsysbinary.readouterr()
    return status, out.decode(), err.decode()


def test_people_get_one_line_a_record(records: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    status, out, err = run(capsysbinary, "--level", "error", "--file", str(records))
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "2026-11-24 08:00:02.000  error     vllm        CUDA out of memory",
        "2026-11-24 08:00:03.000  critical  vllm        engine dead",
    ]


def test_programs_get_the_lines_as_they_stand(records: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    status, out, _ = run(capsysbinary, "CUDA", "--json", "--file", str(records))
    assert status == 0
    assert out.encode() == line(2, log={"level": "ERROR"}, message="CUDA out of memory") + b"\n"


def test_an_incident_shows_its_records_and_what_was_before(
    records: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    _, out, _ = run(capsysbinary, "--incident", "20261124T08", "--before", "2s", "--file", str(records))
    assert [one[47:] for one in out.splitlines()] == [
        "engine dead",
        "Größe: 3 GiB\\nsecond",
        "incident opened",
        "incident closed",
    ]
    _, out, _ = run(capsysbinary, "--incident", "20261124T08", "--before", "0", "--file", str(records))
    assert [one[47:] for one in out.splitlines()] == ["incident opened", "incident closed"]


def test_the_newest_are_shown_and_how_many_are_not(records: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    status, out, err = run(capsysbinary, "--limit", "1", "--file", str(records))
    assert (status, len(out.splitlines())) == (0, 1)
    assert err == "dsobs: 7 earlier records are left out; --limit 0 shows all\n"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nowhere", "--file", "{records}"], 1, "no record fits"),
        (["--file", "/no/file"], 2, "/no/file: No such file or directory"),
        (["--field", "x", "--file", "{records}"], 2, "--field takes NAME=VALUE, such as log.level=error"),
        (
            ["--since", "soon", "--file", "{records}"],
            2,
            "--since takes a time such as 15m, 2h or 2026-11-24T08:00:00Z, not 'soon'",
        ),
        (
            ["--state-dir", "/no/dir"],
            2,
            "/no/dir/logs/records.ndjson is not there; set logs.file.path or --state-dir to that of `dsobs run`, or "
            "give --file",
        ),
    ],
)
def test_what_can_not_be_answered_is_one_line(
    records: Path, capsysbinary: pytest.CaptureFixture[bytes], words: list[str], status: int, said: str
) -> None:
    ended, out, err = run(capsysbinary, *(word.format(records=records) for word in words))
    assert (ended, out, err) == (status, "", f"dsobs: {said}\n")


def test_a_rare_word_is_found_at_more_than_200_mb_per_second_of_cpu(tmp_path: Path) -> None:
    chosen = random.Random(1)
    filler = [line(n % 3600, message=f"{chosen.getrandbits(800):x}") for n in range(1000)]
    path = write(tmp_path / "records.ndjson", *(filler * 100), line(1, message="needle in it"))
    before = sum(os.times()[:2])
    assert messages([path], texts=("needle",)) == ["needle in it"]
    spent = sum(os.times()[:2]) - before
    assert path.stat().st_size / max(spent, 1e-3) > 200e6
