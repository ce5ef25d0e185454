"""What is left out and changed, and that nothing is unless configured."""

from typing import Any

import pytest
from pydantic import ValidationError

from dsobs.config.log_expression import LinePattern, parse_pattern
from dsobs.config.logs import Elasticsearch, Logs
from dsobs.logs.metrics import CUT_FIELDS, LEFT_OUT, MATCHES
from dsobs.logs.record import Record
from dsobs.logs.transforms import open_transforms
from dsobs.logs.transforms.fields import condition, value_of
from dsobs.logs.transforms.matches import SHIPPED, Matches, table

_LINE = b'{"@timestamp":"2026-11-24T08:00:00Z","message":"x"}'


def _apply(transform: dict[str, Any], *documents: dict[str, Any]) -> list[dict[str, Any]]:
    records: list[Record] = [
        (100 * place, b"line %d" % place, {"@timestamp": "2026-11-24T08:00:00Z", **document})
        for place, document in enumerate(documents)
    ]
    for step in open_transforms(Logs.model_validate({"transform": transform})):
        records = step.apply(records)
    found = [document for _, _, document in records]
    assert all(isinstance(document, dict) for document in found)
    return [{k: v for k, v in d.items() if k != "@timestamp"} for d in found if isinstance(d, dict)]


def _left_out(reason: str) -> float:
    value: float = LEFT_OUT.labels(reason)._value.get()
    return value


def test_nothing_is_left_out_or_changed_unless_configured() -> None:
    records: list[Record] = [(0, _LINE, _LINE)]
    steps = open_transforms(Logs())
    assert not any(step.needs_fields for step in steps)
    for step in steps:
        records = step.apply(records)
    assert records == [(0, _LINE, _LINE)]


def test_lower_levels_are_left_out_and_counted_and_records_without_one_are_kept() -> None:
    before = _left_out("level")
    kept = _apply(
        {"min_level": "warning"},
        {"log.level": "info"},
        {"log.level": "WARN"},
        {"log": {"level": "Error"}},
        {"level": 20},
        {"message": "no level"},
        {"log.level": "FATAL"},
    )
    assert len(kept) == 4
    assert _left_out("level") - before == 2


def test_the_preset_in_one_line_sends_errors_to_its_index() -> None:
    logs = Logs(preset="deepseek-logs")
    assert logs.index == "deepseek-logs"
    records: list[Record] = [
        (place, b"x", {"@timestamp": "2026-11-24T08:00:00Z", "log.level": level})
        for place, level in enumerate(["INFO", "WARNING", "ERROR", "CRITICAL", None])
    ]
    for step in open_transforms(logs):
        records = step.apply(records)
    assert [record[0] for record in records] == [2, 3]


def test_what_is_written_goes_before_the_preset() -> None:
    logs = Logs.model_validate({"preset": "deepseek-logs", "transform": {"min_level": "info"}})
    assert (logs.transform_in_force.min_level, logs.transform_in_force.without_level) == ("info", "drop")
    elastic = Elasticsearch(urls=("http://127.0.0.1:9200",), index="mine")
    assert Logs(preset="deepseek-logs", elasticsearch=elastic).index == "mine"
    assert Logs().index == ""


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('log.level = "ERROR"', True),
        ("log.level=INFO", False),
        ("log.level != INFO and http.response.status_code >= 500", True),
        ("http.response.status_code < 500", False),
        ("http.response.status_code <= 500.0 and http.response.status_code > 499", True),
        ('url.path =~ "/v1/.*"', True),
        ("url.path =~ v1", False),
        ('url.path !~ "/(health|metrics)"', True),
        ("user.id = u1", True),
        ("nothing.there = ''", True),
        ("nothing.there > 1", False),
        ("flag = true", True),
        ("log.level = INFO or flag = true and user.id = u1", True),
        ('message = "say \\"no\\""', True),
        ("", True),
    ],
)
def test_expressions(text: str, holds: bool) -> None:
    document = {
        "log.level": "ERROR",
        "http": {"response.status_code": 500},
        "url.path": "/v1/models",
        "user": {"id": "u1"},
        "flag": True,
        "message": 'say "no"',
    }
    assert condition(text)(document) is holds


def test_keep_and_drop_are_counted_each_with_its_reason() -> None:
    before = _left_out("keep"), _left_out("drop")
    kept = _apply({"keep": ["a = 1", "a = 2"], "drop": ["a = 2"]}, {"a": 1}, {"a": 2}, {"a": 3})
    assert kept == [{"a": 1}]
    assert (_left_out("keep") - before[0], _left_out("drop") - before[1]) == (1, 1)


def test_a_sample_is_the_same_records_each_time_and_the_first_that_matches_counts() -> None:
    documents = [{"a": place % 2} for place in range(2000)]
    before = _left_out("sample")
    first = _apply({"sample": ["1 a = 0", "0.25"]}, *documents)
    assert _apply({"sample": ["1 a = 0", "0.25"]}, *documents) == first
    odd = sum(document["a"] for document in first)
    assert len(first) - odd == 1000
    assert 200 < odd < 300
    assert _left_out("sample") - before == 2 * (2000 - len(first))


def test_share_and_expression_stand_apart_by_any_blank() -> None:
    for text in ("0 a = b", "0\ta = b", "0  a = b"):
        assert _apply({"sample": [text]}, {"a": "b"}) == []


def test_a_rate_limit_goes_by_the_seconds_of_the_log() -> None:
    before = _left_out("rate_limit")
    times = ["2026-11-24T08:00:00.1Z"] * 5 + ["2026-11-24T08:00:01Z"] * 2 + ["2026-11-24T08:00:00.9Z"]
    kept = _apply({"rate_limit": ["3 m = x"]}, *[{"m": "x", "@timestamp": time} for time in times], {"m": "y"})
    assert len(kept) == 3 + 2 + 1
    assert _left_out("rate_limit") - before == 3


def test_fields_are_removed_renamed_and_added_dotted_or_nested() -> None:
    (document,) = _apply(
        {"remove": ["secret", "a.b"], "rename": ["user_id=user.id"], "add": ["labels.site=eu-1=x"]},
        {"secret": {"x": 1}, "secret.y": 2, "a": {"b": {"c": 1}}, "a.b.d": 1, "user_id": "u", "user": {"id": "old"}},
    )
    assert document == {"user.id": "u", "labels.site": "eu-1=x"}


def test_long_texts_are_cut_at_a_characters_end_and_marked() -> None:
    before = CUT_FIELDS._value.get()
    (document,) = _apply({"max_field_bytes": 5}, {"a": "äöü", "b": {"c": ["1234567"]}, "d": "12345"})
    assert document == {"a": "äö", "b": {"c": ["12345"]}, "d": "12345", "labels.cut": "a, b.c"}
    assert CUT_FIELDS._value.get() - before == 2


def test_records_of_long_lines_are_left_out_where_a_limit_is_set() -> None:
    before = _left_out("size")
    assert _apply({"max_record_bytes": 3}, {}) == []
    assert _left_out("size") - before == 1


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"drop": ["level ERROR"]}, "is no expression at 'level ERROR'"),
        ({"keep": [""]}, "'' is no expression; write FIELD OP VALUE"),
        ({"keep": ["a = b c = d"]}, "where and or or is wanted"),
        ({"drop": ['a =~ "("']}, "bad regular expression"),
        ({"drop": ["a > x"]}, "which is no number"),
        ({"sample": ["2 a=b"]}, "no share of 0 to 1"),
        ({"rate_limit": ["0"]}, "no whole number above 0"),
        ({"remove": ["@timestamp"]}, "can't be changed"),
        ({"rename": ["a"]}, "write OLD=NEW"),
        ({"add": ["a b=c"]}, "is no field"),
        ({"redact": {"kinds": ["pin"]}}, "api_key"),
    ],
)
def test_bad_transforms_are_refused_with_what_to_write(transform: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Logs.model_validate({"transform": transform})
    assert message in str(refused.value)


# Patterns.


def _matches(name: str) -> float:
    value: float = MATCHES.labels(name)._value.get()
    return value


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cuda_out_of_memory", b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("nccl_watchdog", b"[rank1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5)"),
        ("shm_broadcast_stall", b"No available shared memory broadcast block found in 60 seconds."),
        ("engine_rpc_timeout", b"TimeoutError: RPC call to execute_model timed out."),
        ("engine_dead", b"vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."),
        ("engine_core_failed", b"ERROR EngineCore encountered a fatal error."),
        ("engine_core_exited", b"MPClient: engine core exited unexpectedly; starting cleanup"),
        ("worker_died", b"Worker proc VllmWorker-1 died unexpectedly, shutting down executor."),
        ("disk_full", b'{"message":"OSError: [Errno 28] No space left on device"}'),
    ],
)
def test_known_fatal_lines_are_counted_by_name(name: str, line: bytes) -> None:
    (step,) = open_transforms(Logs())
    before = _matches(name)
    step.apply([(0, b"all is well", {}), (12, line, {}), (99, b"RPC call done", {})])
    assert _matches(name) - before == 1


def test_lines_of_a_backlog_are_not_counted() -> None:
    now = 1_795_508_000.0  # 2026-11-24T08:13:20Z
    step = Matches(table([]), clock=lambda: now)
    before = _matches("disk_full")
    line = b'{"@timestamp":"%b","message":"No space left on device"}'
    old, new = line % b"2026-11-24T07:13:00Z", line % b"2026-11-24T07:14:00Z"
    step.apply([(0, old, old), (99, new, new)])
    assert _matches("disk_full") - before == 1


def test_users_patterns_extend_replace_and_switch_off_those_that_ship() -> None:
    patterns = table(["mine=~x[0-9]+y", "disk_full=ENOSPC", "bus_error=", "both=abc =~ abc.*z$"])
    assert len(patterns) == len(SHIPPED) + 1
    assert LinePattern("mine", "", "x[0-9]+y") in patterns
    assert LinePattern("disk_full", "ENOSPC", "") in patterns
    steps = open_transforms(Logs(patterns=("mine=~x[0-9]+y", "both=abc =~ abc.*z$")))
    before = _matches("mine"), _matches("both")
    steps[0].apply([(0, b"x12y", {}), (9, b"abc 1", {}), (20, b"abc z", {})])
    assert (_matches("mine") - before[0], _matches("both") - before[1]) == (1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("Name=x", "is no pattern"), ("x", "is no pattern"), ("x=~(", "bad regular expression"), ("x=a =~ (", "bad reg")],
)
def test_bad_patterns_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pattern(text)


def test_a_field_is_found_dotted_nested_or_both() -> None:
    assert value_of({"a.b": {"c.d": 1}}, "a.b.c.d") == 1
    assert value_of({"a": {"b": 2}}, "a.b") == 2
    assert value_of({"a": 1}, "a.b") is None
