"""Files of container runtimes, and finding out what a file is."""

from pathlib import Path

import pytest

from tests.logs.parsing import READ_AT, documents, fields, opened, parsed

_LOGS = Path(__file__).parents[1] / "data" / "vllm-0.32" / "logs"
_CRASH = (_LOGS / "crash.log").read_bytes()
_JSON = (_LOGS / "crash.jsonl").read_bytes()
_AT = "2026-11-24T08:00:00.123456789Z"
_UID = "0f9c1c5e-6a4b-4c1e-8d43-1f1d9a3c7b11"


def _cri(data: bytes) -> bytes:
    return b"".join(f"{_AT} stdout F ".encode() + line + b"\n" for line in data.split(b"\n")[:-1])


def test_a_cri_line_has_the_runtimes_time_and_stream_and_its_text_is_read() -> None:
    (record,) = documents(opened("cri"), f"{_AT} stderr F INFO 11-23 17:17:07 [a.py:1] hello")
    assert record["@timestamp"] == _AT
    assert (record["stream"], record["message"], record["log.level"]) == ("stderr", "hello", "INFO")
    assert "labels.time_inferred" not in record


def test_parts_of_a_cri_line_are_joined_by_stream() -> None:
    first, second = documents(
        opened("cri"),
        f"{_AT} stdout P one ",
        f"{_AT} stderr F other",
        f"{_AT} stdout P two ",
        f"{_AT} stdout F three",
    )
    assert first["message"] == "one two three"
    assert second["message"] == "other"


def test_a_cri_part_without_its_end_is_held_and_sent_at_the_end() -> None:
    parser = opened("cri")
    (record,) = documents(parser, f"{_AT} stdout P begun")
    assert record["message"] == "begun"
    assert parser.held_from is None


def test_a_line_that_is_not_of_the_runtime_is_sent_as_text_with_the_reason() -> None:
    (record,) = documents(opened("cri"), "torn")
    assert record["message"] == "torn"
    assert "container runtime" in record["error.message"]


def test_a_pod_log_says_which_pod_it_is() -> None:
    by_pod = opened("cri", path=f"/var/log/pods/prod_r1-0_{_UID}/vllm/3.log")
    assert by_pod.fields == {
        "orchestrator.type": "kubernetes",
        "orchestrator.namespace": "prod",
        "orchestrator.resource.type": "pod",
        "orchestrator.resource.name": "r1-0",
        "orchestrator.resource.id": _UID,
        "container.name": "vllm",
    }
    identity = "ab" * 32
    by_container = opened("cri", path=f"/var/log/containers/r1-0_prod_vllm-{identity}.log")
    assert by_container.fields["container.id"] == identity
    assert by_container.fields["orchestrator.resource.name"] == "r1-0"
    docker = opened("docker", path=f"/var/lib/docker/containers/{identity}/{identity}-json.log")
    assert docker.fields == {"container.id": identity, "container.runtime": "docker"}


def test_docker_lines_are_unwrapped_and_parts_joined() -> None:
    first, second = documents(
        opened("docker"),
        '{"log":"one ","stream":"stdout","time":"2026-11-24T08:00:00.1Z"}',
        '{"log":"two\\n","stream":"stdout","time":"2026-11-24T08:00:00.2Z"}',
        '{"log":"{\\"level\\":\\"info\\",\\"msg\\":\\"x\\"}\\n","stream":"stderr","time":"2026-11-24T08:00:01Z"}',
    )
    assert (first["message"], first["@timestamp"]) == ("one two", "2026-11-24T08:00:00.1Z")
    assert (second["message"], second["log.level"], second["stream"]) == ("x", "info", "stderr")
    assert second["@timestamp"] == "2026-11-24T08:00:01Z"


@pytest.mark.parametrize(
    ("data", "dataset"),
    [
        (_CRASH, "vllm"),
        (_JSON, "vllm"),
        (_cri(_CRASH), "vllm"),
        (_cri(_JSON), "vllm"),
        (b'{"@timestamp":"2026-11-24T08:00:00Z","message":"x"}\n', "json"),
        (b'{"log":"INFO 11-23 17:17:07 [a.py:1] x\\n","stream":"stdout","time":"2026-11-24T08:00:00Z"}\n', "vllm"),
        (b'INFO:     Started server process [1]\nINFO:     1.2.3.4:5 - "GET / HTTP/1.1" 200 OK\n', "uvicorn"),
        (b"any text\nand more\n", "plain"),
    ],
    ids=["vllm", "vllm-json", "cri-vllm", "cri-vllm-json", "json", "docker-vllm", "uvicorn", "plain"],
)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("lines_each", [1, 10**9])
def test_the_kind_of_a_file_is_found_out(data: bytes, dataset: str, head: bool, lines_each: int) -> None:
    parser = opened("auto", head=data[:65536] if head else b"")
    records = parsed(parser, data, lines_each=lines_each)
    assert parser.dataset == dataset
    assert parser.held_from is None
    whole = [raw for _, raw, _ in records]
    assert sorted(b"\n".join(whole).split(b"\n")) == sorted(data.split(b"\n")[:-1])


def test_the_kind_is_the_same_after_a_restart_in_the_middle() -> None:
    data = b"Triton is installed\n" + b"INFO 11-23 17:17:07 [a.py:1] x\n" + b"INFO:     Shutting down\n" * 3
    parser = opened("auto", head=data)
    parsed(parser, b"INFO:     Shutting down\n")
    assert parser.dataset == "vllm"


def test_a_traceback_in_a_container_is_one_record_with_the_runtimes_time() -> None:
    records = [fields(record) for record in parsed(opened("auto"), _cri(_CRASH))]
    (failed,) = [record for record in records if "error.type" in record]
    assert failed["error.type"].endswith("EngineDeadError")
    assert failed["@timestamp"] == _AT


def test_a_traceback_between_json_lines_is_one_record() -> None:
    line = '{"time":"2026-11-24T08:00:00Z","msg":"x"}'
    trace = ("Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "OSError: no")
    records = documents(opened("auto", modified_at=READ_AT), line, *trace, line)
    assert [record["message"] for record in records] == ["x", "OSError: no", "x"]
    assert records[1]["error.type"] == "OSError"


def test_a_file_whose_beginning_says_nothing_is_named_by_its_path_and_read_all_the_same() -> None:
    parser = opened("auto", path="/var/log/pods/prod_r1-0_uid/vllm/0.log")
    (first,) = documents(parser, "Triton is installed")
    second, third = documents(parser, "INFO 11-23 17:17:07 [a.py:1] x", '{"level":"info","msg":"y"}')
    assert parser.dataset == "vllm"
    assert (first["message"], second["log.level"], third["message"]) == ("Triton is installed", "INFO", "y")
