"""The log shipping process beside the sidecar: started, watched, replaced, stopped."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dsobs.config import Config, Secret
from dsobs.config.models import Log
from dsobs.model.samples import labels
from dsobs.sidecar.shipping import Shipping
from dsobs.telemetry import REGISTRY, Own
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import append, lines, named, settings, until


@pytest.fixture
async def server() -> AsyncIterator[ElasticsearchStandIn]:
    async with ElasticsearchStandIn() as stand_in:
        yield stand_in


@pytest.fixture
async def shipping(tmp_path: Path) -> AsyncIterator[Shipping]:
    made = Shipping(tmp_path / "state", "vllm-0")
    yield made
    await made.stop()
    await made.stop()


def config(server: ElasticsearchStandIn, log: Path | str, **more: object) -> Config:
    return Config(logs=settings(server.url, log, **more), log=Log(format="json"))


def children() -> list[int]:
    """Process ids of this process's own shipping children."""
    own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in own if b"dsobs.cli.logs.child" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_the_child_ships_and_its_metrics_are_the_sidecar_s(
    server: ElasticsearchStandIn, shipping: Shipping, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(1, 2))
    shipping.use(config(server, tmp_path / "app.log", api_key=Secret("literal-key")))
    await until(lambda: sorted(server.messages()) == named(1, 2))
    assert server.requests[0][2]["Authorization"] == "ApiKey literal-key"
    assert next(iter(server.documents.values()))["service.name"] == "vllm-0"
    await until(lambda: REGISTRY.get_sample_value("dsobs_log_records_total", {"outcome": "sent"}) == 2)
    assert REGISTRY.get_sample_value("dsobs_log_shipper_up") == 1
    assert shipping.status is not None
    await shipping.stop()
    assert not children()
    assert REGISTRY.get_sample_value("dsobs_log_shipper_up") == 0


async def test_a_child_that_is_killed_is_started_again_and_loses_nothing(
    server: ElasticsearchStandIn, shipping: Shipping, tmp_path: Path
) -> None:
    before = REGISTRY.get_sample_value("dsobs_log_shipper_restarts_total") or 0
    append(tmp_path / "app.log", lines(1))
    shipping.use(config(server, tmp_path / "app.log"))
    await until(lambda: server.messages() == named(1))
    (child,) = children()
    os.kill(child, signal.SIGKILL)
    append(tmp_path / "app.log", lines(2))
    await until(lambda: sorted(server.messages()) == named(1, 2))
    assert (REGISTRY.get_sample_value("dsobs_log_shipper_restarts_total") or 0) - before == 1


async def test_other_settings_replace_the_child_and_none_end_it(
    server: ElasticsearchStandIn, shipping: Shipping, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(1))
    shipping.use(config(server, tmp_path / "app.log"))
    await until(lambda: server.messages() == named(1))
    append(tmp_path / "other.log", lines(2))
    shipping.use(config(server, tmp_path / "o*.log"))
    await until(lambda: sorted(server.messages()) == named(1, 2))
    shipping.use(Config())
    await until(lambda: not children())


async def test_a_child_that_can_not_begin_says_why_and_is_tried_again(
    server: ElasticsearchStandIn, shipping: Shipping, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").write_text("no directory")
    shipping.use(config(server, tmp_path / "app.log"))
    said = ""

    def told() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return said.count("logs are not shipped") >= 2

    await until(told)
    await asyncio.wait_for(shipping.stop(), 60)


async def test_what_logs_say_reaches_rules_and_signals_of_the_sidecar(
    server: ElasticsearchStandIn, shipping: Shipping, tmp_path: Path
) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(
        "(Worker pid=1) INFO 11-23 17:17:05 [gpu_worker.py:1] Available KV cache memory: 56.13 GiB\n"
        "torch.OutOfMemoryError: CUDA out of memory.\n"
    )
    own = Own(["dsobs_log_matches_total"])
    assert (own.samples(), shipping.kv_pool()) == ([], None)
    shipping.use(config(server, f"auto:{log}"))
    await until(lambda: shipping.kv_pool() == int(56.13 * 2**30))
    found = {sample.labels: sample.value for sample in own.samples()}
    assert found[labels("dsobs_log_matches_total", pattern="cuda_out_of_memory")] == 1
    assert found[labels("dsobs_log_matches_total", pattern="nccl_watchdog")] == 0
    await shipping.stop()
    assert (own.samples(), shipping.kv_pool()) == ([], None)


async def test_the_preset_goes_to_the_child(server: ElasticsearchStandIn, shipping: Shipping, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text('{"level":"INFO","message":"fine"}\n{"level":"ERROR","message":"broken"}\n{"message":"no level"}\n')
    shipping.use(config(server, f"auto:{log}", preset="deepseek-logs", index=""))
    left_out = {"reason": "level"}
    await until(lambda: REGISTRY.get_sample_value("dsobs_log_left_out_records_total", left_out) == 2)
    await until(lambda: server.messages() == ["broken"])
    assert {index for index, _, _ in server.requests} == {"deepseek-logs"}


async def test_the_output_file_of_a_supervised_engine_is_shipped_without_being_named(
    server: ElasticsearchStandIn, shipping: Shipping, tmp_path: Path
) -> None:
    log = tmp_path / "engine[1].log"
    append(log, lines(1))
    wanted = config(server, tmp_path / "none").logs.model_copy(update={"files": ()})
    shipping.use(Config(logs=wanted.model_copy(update={"supervised": False})))
    shipping.found(str(log))
    assert shipping._task is None
    shipping.use(Config(logs=wanted))
    await until(lambda: server.messages() == named(1))
    (child,) = children()
    # Said again each second, by whoever sees the supervisor.
    shipping.found(str(log))
    append(log, lines(2))
    await until(lambda: sorted(server.messages()) == named(1, 2))
    assert children() == [child]
    append(tmp_path / "moved.log", lines(3))
    shipping.found(str(tmp_path / "moved.log"))
    await until(lambda: sorted(server.messages()) == named(1, 2, 3))
