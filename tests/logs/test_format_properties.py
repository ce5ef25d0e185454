"""What holds for any bytes: nothing raises, each line is in one record or was counted as blank, blocks don't matter."""

import json
from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dsobs import plugins
from dsobs.config.log_transform import LogTransform, Redact
from dsobs.config.logs import Logs
from dsobs.logs.batch import Encoder
from dsobs.logs.formats import GROUP
from dsobs.logs.formats.json_fields import SPECIAL, are_times, is_time
from dsobs.logs.metrics import BLANK_LINES
from dsobs.logs.record import Common, Lines, Record
from dsobs.logs.transforms import open_transforms
from tests.logs.parsing import READ_AT, blocks, by_offset, fields, opened

FORMATS = tuple(plugins.available(GROUP))
"""All that are registered: this is the contract of formats."""
_LINES = (
    b"(EngineCore pid=776) ERROR 11-23 17:17:07 [core.py:113] failed\r",
    b"(EngineCore pid=776) ERROR 11-23 17:17:07 [core.py:113] Traceback (most recent call last):\r",
    b"(EngineCore pid=776) ERROR 11-23 17:17:07 [core.py:113]   File x\r",
    b"(EngineCore pid=776) ERROR 11-23 17:17:07 [core.py:113] KeyError: 'a'",
    b"(APIServer pid=1) INFO 02-29 17:17:07 [a.py:1] x",
    b"INFO 99-99 99:99:99 [a.py:1] x",
    b'INFO:     1.2.3.4:5 - "GET /?a=b HTTP/1.1" 200 OK',
    b"ERROR:    Exception in ASGI application",
    b"Traceback (most recent call last):",
    b"  File x",
    b"ValueError: y",
    b"During handling of the above exception, another exception occurred:",
    b"",
    b"  ",
    b"\r",
    b'{"@timestamp":"2026-11-24T08:00:00Z","message":"m"}',
    b'{"levelname":"INFO","name":"vllm.a","asctime":"2026-11-24 08:00:00,123","message":"x"}',
    b"2026-11-24T08:00:00.1Z stdout P part ",
    b"2026-11-24T08:00:00.1Z stdout F end",
    b'2026-11-24T08:00:00.1Z stderr F {"msg":"x"}',
    b"9999-99-99T08:00:00.1Z stderr F x",
    b'{"log":"part","stream":"stdout","time":"2026-11-24T08:00:00Z"}',
    b'{"log":"end\\n","stream":"stdout","time":"2026-11-24T08:00:00Z"}',
    b'{"log":5,"time":"2026-11-24T08:00:00Z"}',
    b"\xff\x1b[0m\0",
)
_line = st.one_of(st.sampled_from(_LINES), st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")))
_files = st.lists(_line, min_size=1, max_size=30).map(lambda lines: b"\n".join(lines) + b"\n")
_json: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
_EVERYTHING = Logs(
    transform=LogTransform(
        redact=Redact(kinds=("api_key", "bearer", "email", "phone", "card", "prompt")), max_field_bytes=16
    )
)


def _all(format_: str, data: bytes, lines_each: int, fault: str = "") -> list[Record]:
    parser = opened(format_)
    records: list[Record] = []
    for block in blocks(data, lines_each=lines_each):
        block.fault = fault
        records += parser.parse(block)
    records += parser.flush()
    assert parser.held_from is None
    return records


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=_files, lines_each=st.integers(1, 8))
@example(data=b"\n" + 2 * (b"(EngineCore pid=776) ERROR 11-23 17:17:07 [core.py:113] failed\r\n"), lines_each=1)
def test_each_line_is_in_one_record_or_counted_as_blank_wherever_blocks_end(
    format_: str, data: bytes, lines_each: int
) -> None:
    before = BLANK_LINES._value.get()
    records = _all(format_, data, lines_each)
    blank = BLANK_LINES._value.get() - before
    wanted, got = Counter(data.split(b"\n")[:-1]), Counter(b"\n".join(raw for _, raw, _ in records).split(b"\n"))
    if not records:
        got = Counter()
    left = wanted - got
    assert not got - wanted
    # Plain text and the text between others' lines have blank lines, of which nothing is sent.
    assert all(not line.split(b" F ")[-1].strip() or b'"log":""' in line or b"pid=" in line for line in left)
    assert left.total() == blank
    assert by_offset(records) == by_offset(_all(format_, data, 10**9))
    for start, raw, _ in records:
        assert data[start:].startswith(raw.split(b"\n")[0])
    assert all("@timestamp" in fields(record) for record in records)
    Encoder("k", Common({"host.name": "n"})).encode(records)


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=60, deadline=None)
@given(line=_line, fault=st.sampled_from(["cut", "unfinished"]))
def test_a_faulty_line_is_a_record_that_says_so(format_: str, line: bytes, fault: str) -> None:
    parser = opened(format_)
    records = parser.parse(Lines(0, len(line) + 1, [line], READ_AT, fault)) + parser.flush()
    if records:
        (record,) = records
        assert record[1] == line
        assert fields(record)["error.message"]


@settings(max_examples=200, deadline=None)
@given(value=st.dictionaries(st.text(max_size=8), _json, max_size=6))
def test_keys_that_are_not_mapped_keep_their_values(value: dict[str, Any]) -> None:
    parser = opened("json")
    line = orjson.dumps(value)
    ((_, _, document),) = parser.parse(Lines(0, len(line) + 1, [line], READ_AT))
    found = document if isinstance(document, dict) else orjson.loads(document)
    kept = {key: item for key, item in orjson.loads(line).items() if key not in SPECIAL | {"@timestamp", "message"}}
    assert {key: found[key] for key in kept} == kept


_key = st.sampled_from(
    (
        *sorted(SPECIAL),
        "@timestamp",
        "message",
        "log.level",
        "process.pid",
        "error.stack_trace",
        "a",
        'x"level',
        "labels",
    )
)
_value = st.one_of(
    st.sampled_from(
        ("INFO", "2026-11-24 08:00:00,123", "2026-11-24T08:00:00Z", "step took 5 s", '"level":', "{", "\\")
    ),
    st.text(max_size=6),
    st.integers(0, 9),
    st.dictionaries(st.sampled_from(("level", 'x"level', "a")), st.sampled_from(("b", "level")), max_size=2),
)


_AT = {"@timestamp": "2026-11-24T08:00:00Z"}
_USUAL: tuple[dict[str, Any], ...] = (
    {},
    _AT,
    {**_AT, "level": "INFO", "inner": {"level": "b"}},
    {**_AT, "msg": "m", "inner": [{"msg": 1}]},
    {**_AT, "level": "INFO", 'x"level': 1},
    {**_AT, "level": "INFO", "message": 5},
    {**_AT, "levelname": "INFO", "message": "Model loading took 4.2 GiB memory and 3.5 seconds"},
    {**_AT, "error.stack_trace": "Traceback (most recent call last):\n  x\nKeyError: y"},
    {"asctime": "2026-11-24 08:00:00,123"},
    {"asctime": "2026-11-24 08:00:00,123", "a": "2026-11-24 08:00:00,123"},
    {"asctime": "2026-11-24 08:00:00,123", "time": "2026-11-24T09:00:00Z"},
)


_SEPARATORS = ((",", ":"), (", ", ": "), (" , ", " : "))
_SPELLINGS = (
    ("", ""),
    ('"l', '"\\u006c'),
    ('"m', '"\\u006d'),
    ('l":', 'l" :'),
    ('sg":', 'sg" :'),
    ('"level":', '"level":"x","level":'),
    ('"msg":', '"msg":"x","msg":'),
)


def _line_of(value: dict[str, Any], separators: tuple[str, str], ascii_: bool, spelt: tuple[str, str]) -> bytes:
    text = json.dumps(value, separators=separators, ensure_ascii=ascii_).replace(*spelt, 1)
    return text.encode("utf-8", "surrogatepass")


_one_of_several = st.tuples(
    st.dictionaries(_key, _value, max_size=2), st.sampled_from(_SEPARATORS), st.sampled_from(_SPELLINGS)
)


@settings(max_examples=1000, deadline=None)
@given(
    value=st.dictionaries(_key, _value, max_size=5),
    others=st.lists(_one_of_several, max_size=3),
    usual=st.sampled_from(_USUAL),
    separators=st.sampled_from(_SEPARATORS),
    ascii_=st.booleans(),
    spelt=st.sampled_from(_SPELLINGS),
    common=st.sampled_from(({}, {"process.pid": 1}, {"log.level": "x"}, {"message": "x"}, {"event.timezone": "Z"})),
)
@example(
    value={},
    others=[({}, (",", ":"), ('"level":', '"level":"x","level":'))],
    usual={**_AT, "level": "INFO"},
    separators=(",", ":"),
    ascii_=True,
    spelt=('l":', 'l" :'),
    common={},
)
def test_lines_that_new_names_are_put_into_together_say_what_their_objects_would(
    value: dict[str, Any],
    others: list[tuple[dict[str, Any], tuple[str, str], tuple[str, str]]],
    usual: dict[str, Any],
    separators: tuple[str, str],
    ascii_: bool,
    spelt: tuple[str, str],
    common: dict[str, Any],
) -> None:
    lines = [_line_of({**usual, **value}, separators, ascii_, spelt)]
    lines += [_line_of({**usual, **value, **more}, between, ascii_, other) for more, between, other in others]
    block = Lines(0, sum(map(len, lines)) + len(lines), lines, READ_AT)
    told = []
    for as_fields in (False, True):
        records = opened("json", common=Common(common), as_fields=as_fields).parse(block)
        body = Encoder("k", Common(common)).encode(records)
        told.append([list(map(orjson.loads, body.split(b"\n")[part:-1:2])) for part in (0, 1)])
    assert told[0] == told[1]


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(st.one_of(_line, st.text(max_size=8).map(lambda text: text.encode().replace(b"\n", b"\x7f")))))
def test_plain_lines_written_together_say_what_each_says_by_itself(lines: list[bytes]) -> None:
    block = Lines(0, sum(map(len, lines)) + len(lines), lines, READ_AT)
    told = [by_offset(opened("plain", as_fields=as_fields).parse(block)) for as_fields in (False, True)]
    assert told[0] == told[1]


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(
        st.one_of(
            st.sampled_from(("2026-11-24T08:00:00Z", "2026-11-24T08:00:00.123456+01:00")),
            st.sampled_from(
                (
                    "2026-11-24T08:00Z",
                    "2026-02-30T08:00:00Z",
                    "2026-11-24 08:00:00Z",
                    "2026-11-24T08:00:00,5Z",
                    "2026-11-24T08:00:00",
                    "20261124T080000.00000Z",
                    "2026-W48-2T08:00:00Z",
                )
            ),
            st.none(),
            st.integers(),
            st.text(max_size=24),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_times_looked_at_together_are_times_if_each_is(values: list[Any]) -> None:
    assert are_times(values) == all(map(is_time, values))


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=_files)
def test_transforms_take_whatever_formats_give(format_: str, data: bytes) -> None:
    records = _all(format_, data, 10**9)
    places = [record[:2] for record in records]
    for transform in open_transforms(_EVERYTHING):
        parser_fields = [(start, raw, fields((start, raw, document))) for start, raw, document in records]
        records = transform.apply(list(parser_fields))
    assert [record[:2] for record in records] == places
