"""vLLM's text log, by what real servers wrote; older versions' lines are constructed after their format strings."""

from pathlib import Path

import pytest

from tests.logs.parsing import READ_AT, blocks, by_offset, documents, fields, opened, parsed

_DATA = Path(__file__).parents[1] / "data"
_CRASH = (_DATA / "vllm-0.32" / "logs" / "crash.log").read_bytes()
_START = (_DATA / "h100-vllm-0.23" / "vllm-startup.log").read_bytes()
_HEAD = "(EngineCore pid=776) ERROR 11-23 17:17:07 [core.py:113] "


def test_a_crash_of_0_32_gives_one_record_with_its_traceback() -> None:
    records = [fields(record) for record in parsed(opened("vllm"), _CRASH)]
    (failed,) = [record for record in records if "error.stack_trace" in record]
    assert failed["message"] == "AsyncLLM output_handler failed."
    assert failed["error.type"] == "vllm.v1.engine.exceptions.EngineDeadError"
    assert failed["error.message"].startswith("EngineCore encountered an issue. See stack trace")
    assert failed["error.stack_trace"].startswith("Traceback (most recent call last):\n  File ")
    assert "(APIServer" not in failed["error.stack_trace"]
    assert failed["error.stack_trace"].splitlines()[-1].startswith("vllm.v1.engine.exceptions.EngineDeadError: ")
    assert (failed["log.level"], failed["process.name"], failed["process.pid"]) == ("ERROR", "APIServer", 29896)
    assert (failed["log.origin.file.name"], failed["log.origin.file.line"]) == ("async_llm.py", 906)


@pytest.mark.parametrize("data", [_CRASH, _START], ids=["0.32", "0.23"])
def test_each_byte_of_a_real_log_is_in_one_record(data: bytes) -> None:
    records = parsed(opened("vllm"), data)
    assert sorted(b"\n".join(raw for _, raw, _ in records).split(b"\n")) == sorted(data.split(b"\n")[:-1])
    assert all(data[start : start + 20].startswith(raw[:20]) for start, raw, _ in records)


@pytest.mark.parametrize("data", [_CRASH, _START], ids=["0.32", "0.23"])
@pytest.mark.parametrize("lines_each", [1, 2, 7])
def test_records_are_the_same_wherever_blocks_end(data: bytes, lines_each: int) -> None:
    in_blocks = parsed(opened("vllm"), data, lines_each=lines_each)
    assert by_offset(in_blocks) == by_offset(parsed(opened("vllm", as_fields=True), data))


def test_a_failed_import_of_0_23_is_a_warning_with_its_traceback() -> None:
    records = [fields(record) for record in parsed(opened("vllm"), _START)]
    (warned,) = [record for record in records if "error.type" in record]
    assert warned["message"] == "Module vllm.third_party.deep_gemm was found but failed to import"
    assert (warned["error.type"], warned["log.level"]) == ("ImportError", "WARNING")


def test_start_up_lines_of_0_23_become_numbers() -> None:
    found: dict[str, object] = {}
    for record in parsed(opened("vllm"), _START):
        found.update({name: value for name, value in fields(record).items() if name.startswith("vllm.")})
    assert found == {
        "vllm.weights_bytes": int(14.28 * 2**30),
        "vllm.load_seconds": pytest.approx(0.35, abs=0.3),
        "vllm.kv_pool_bytes": int(56.13 * 2**30),
        "vllm.kv_cache_tokens": 1051008,
        "vllm.max_model_len": 4096,
        "vllm.max_concurrency": 256.59,
        "vllm.init_seconds": 12.04,
    }


def test_engine_statistics_become_numbers() -> None:
    (record,) = documents(
        opened("vllm"),
        "(APIServer pid=1) INFO 11-24 08:09:44 [loggers.py:335] Engine 001: Avg prompt throughput: 0.4 tokens/s, Avg "
        "generation throughput: 12.6 tokens/s, Running: 3 reqs, Waiting: 1 reqs, Deferred: 2 reqs, Preemptions: 4, GPU "
        "KV cache usage: 12.5%, Prefix cache hit rate: 80.0%",
    )
    assert {name: value for name, value in record.items() if name.startswith("vllm.")} == {
        "vllm.engine": 1,
        "vllm.prompt_tokens_per_second": 0.4,
        "vllm.generation_tokens_per_second": 12.6,
        "vllm.requests_running": 3,
        "vllm.requests_waiting": 1,
        "vllm.requests_deferred": 2,
        "vllm.preemptions": 4,
        "vllm.kv_cache_usage_ratio": 0.125,
        "vllm.prefix_cache_hit_ratio": 0.8,
    }


@pytest.mark.parametrize(
    ("line", "name", "pid"),
    [
        ("INFO 04-01 10:00:00 [__init__.py:239] Automatically detected platform cuda.", None, None),
        (
            "(VllmWorker rank=1 pid=77) INFO 04-01 10:00:00 [cuda.py:221] Using Flash Attention.",
            "VllmWorker rank=1",
            77,
        ),
        ("(EngineCore_0 pid=123) INFO 09-01 10:00:00 [core.py:74] Waiting.", "EngineCore_0", 123),
        ("(EngineCore_DP0 pid=123) (Worker_TP1 pid=124) INFO 10-01 10:00:00 [x.py:1] y", "Worker_TP1", 124),
    ],
    ids=["0.8", "0.9", "0.10", "0.12"],
)
def test_constructed_lines_of_older_versions_are_read(line: str, name: str | None, pid: int | None) -> None:
    (record,) = documents(opened("vllm"), line)
    assert (record.get("process.name"), record.get("process.pid")) == (name, pid)
    assert record["log.level"] == "INFO"
    assert record["@timestamp"].endswith("-01T10:00:00Z")


def test_a_traceback_without_carriage_returns_is_one_record_too() -> None:
    data = _CRASH.replace(b"\r\n", b"\n")
    records = [fields(record) for record in parsed(opened("vllm"), data)]
    (failed,) = [record for record in records if "error.type" in record]
    assert failed["message"] == "AsyncLLM output_handler failed."
    assert failed["error.type"] == "vllm.v1.engine.exceptions.EngineDeadError"


def test_a_chained_traceback_without_a_prefix_is_one_record() -> None:
    lines = (
        "Traceback (most recent call last):",
        '  File "a.py", line 1, in <module>',
        "    int('x')",
        "ValueError: invalid literal",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        '  File "a.py", line 3, in <module>',
        "    raise RuntimeError('no')",
        "RuntimeError: no",
        "next line",
    )
    first, second = documents(opened("vllm"), *lines)
    assert (first["error.type"], first["error.message"], first["log.level"]) == ("RuntimeError", "no", "ERROR")
    assert first["message"] == "RuntimeError: no"
    assert "ValueError: invalid literal" in first["error.stack_trace"]
    assert second["message"] == "next line"


def test_two_processes_that_write_at_once_keep_their_tracebacks_apart() -> None:
    other = _HEAD.replace("EngineCore pid=776", "Worker_TP1 pid=800")
    first, second = documents(
        opened("vllm"),
        f"{_HEAD}failed\r",
        f"{other}failed too\r",
        f"{_HEAD}Traceback (most recent call last):\r",
        f"{other}Traceback (most recent call last):\r",
        f"{_HEAD}KeyError: 'a'",
        f"{other}OSError: b",
    )
    assert (first["error.type"], second["error.type"]) == ("KeyError", "OSError")
    assert (first["process.pid"], second["process.pid"]) == (776, 800)


def test_reading_begins_again_before_a_finished_record_that_surrounds_an_unfinished_one() -> None:
    """Else its last lines would be taken for a record of their own."""
    other = _HEAD.replace("EngineCore pid=776", "Worker_TP1 pid=800")
    parser = opened("vllm")
    lines = [f"{_HEAD}failed\r", f"{other}failed too\r", f"{_HEAD}KeyError: 'a'"]
    data = "".join(line + "\n" for line in lines).encode()
    (block,) = blocks(data)
    (done,) = parser.parse(block)
    assert done[0] == 0
    assert parser.held_from == 0
    ((start, _, document),) = parser.parse(blocks(f"{other}x\n".encode(), start=block.end)[0])
    assert start == len(lines[0]) + 1
    assert not parser.flush()
    assert isinstance(document, dict)
    assert document["message"] == "failed too\nx"


def test_what_waits_for_a_traceback_is_sent_when_others_have_written_long_enough() -> None:
    parser = opened("vllm")
    parser.parse(blocks(f"{_HEAD}failed\n".encode())[0])
    assert parser.held_from == 0
    other = b"(APIServer pid=1) INFO 11-23 17:17:08 [a.py:1] x\n"
    records = parser.parse(blocks(other * 300, start=len(_HEAD) + 7)[0])
    assert parser.held_from is None
    assert len(records) == 301


def test_a_year_is_the_latest_in_which_the_line_is_not_newer_than_the_file() -> None:
    january = 1_767_600_000.0  # 2026-01-05T08:00:00Z
    parser = opened("vllm", modified_at=january)
    first, second, third = documents(
        parser,
        "INFO 12-30 23:59:59 [a.py:1] x",
        "INFO 01-01 00:00:00 [a.py:1] x",
        "INFO 02-29 00:00:00 [a.py:1] a leap day",
    )
    assert first["@timestamp"] == "2025-12-30T23:59:59Z"
    assert second["@timestamp"] == "2026-01-01T00:00:00Z"
    assert third["@timestamp"] == "2024-02-29T00:00:00Z"


def test_a_followed_file_goes_on_into_the_next_year() -> None:
    new_year = 1_767_225_600.0  # 2026-01-01T00:00:00Z
    parser = opened("vllm", modified_at=new_year - 2)
    line = b"INFO %b [a.py:1] x\n"
    (first,) = parser.parse(blocks(line % b"12-31 23:59:58", read_at=new_year - 1)[0])
    (second,) = parser.parse(blocks(line % b"01-01 00:00:01", read_at=new_year + 2)[0])
    assert fields(first)["@timestamp"] == "2025-12-31T23:59:58Z"
    assert fields(second)["@timestamp"] == "2026-01-01T00:00:01Z"


def test_a_time_that_names_no_zone_is_taken_for_the_one_of_the_settings_and_says_so() -> None:
    (record,) = documents(opened("vllm", timezone="Asia/Kolkata"), "INFO 11-23 17:17:07 [a.py:1] x")
    assert record["@timestamp"] == "2026-11-23T11:47:07Z"
    assert (record["event.timezone"], record["labels.time_inferred"]) == ("+05:30", "year, zone")


def test_a_time_that_is_none_is_that_of_reading_and_says_so() -> None:
    (record,) = documents(opened("vllm"), "INFO 13-45 17:17:07 [a.py:1] x")
    assert record["@timestamp"] == "2026-11-24T08:13:20.000Z"
    assert record["error.message"] == "its time can't be read; it is that of reading"


def test_uvicorns_lines_become_fields_with_and_without_the_process_before_them() -> None:
    bare, tagged = documents(
        opened("vllm"),
        'INFO:     127.0.0.1:40804 - "GET /v1/models?x=1 HTTP/1.1" 200 OK',
        '(APIServer pid=568) INFO:     ::1:33508 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error',
    )
    assert bare["url.path"] == "/v1/models"
    assert (bare["url.query"], bare["event.outcome"], bare["client.port"]) == ("x=1", "success", 40804)
    assert (tagged["client.ip"], tagged["http.response.status_code"], tagged["process.pid"]) == ("::1", 500, 568)
    assert (tagged["event.outcome"], tagged["http.request.method"], tagged["log.level"]) == ("failure", "POST", "INFO")


def test_a_trace_context_in_a_line_becomes_trace_and_span() -> None:
    (record,) = documents(
        opened("vllm"),
        "INFO 11-23 17:17:07 [a.py:1] traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    assert record["trace.id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert record["span.id"] == "00f067aa0ba902b7"


def test_colors_of_a_terminal_are_not_part_of_the_document() -> None:
    (record,) = documents(
        opened("vllm"),
        "\x1b[0;36m(APIServer pid=1)\x1b[0;0m \x1b[32mINFO\x1b[0m \x1b[90m11-23 17:17:07\x1b[0m "
        "\x1b[90m[a.py:1]\x1b[0m hello",
    )
    assert (record["log.level"], record["message"], record["process.pid"]) == ("INFO", "hello", 1)


def test_lines_of_a_terminal_which_all_end_with_a_carriage_return_stay_apart() -> None:
    line = "INFO 11-23 17:17:07 [launcher.py:46] Route: /a\r"
    head = f"{line}\n{line}\n{line}\n".encode()
    assert len(parsed(opened("vllm", head=head), head)) == 3


def test_unstamped_lines_of_an_old_file_have_the_time_of_the_line_before() -> None:
    parser = opened("vllm", modified_at=READ_AT - 86400)
    first, second = documents(parser, "INFO 11-20 10:00:00 [a.py:1] x", "INFO:     Shutting down")
    assert second["@timestamp"] == first["@timestamp"] == "2026-11-20T10:00:00Z"
