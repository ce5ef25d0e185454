"""A real OpenTelemetry Collector takes what dsobs sends, and sends on the same."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from dsobs.config.logs import Logs
from dsobs.config.otlp import Otlp, OtlpLogs
from dsobs.logs.ship import Shipper
from dsobs.model.clock import SteadyClock
from dsobs.model.samples import Sample, labels
from dsobs.otlp.exporter import Exporter
from dsobs.remediation.ledger import Entry
from dsobs.simulator.process import free_port
from tests.otlp_receiver import OtlpReceiver, attributes, value_of

pytestmark = pytest.mark.real("servers")

INSTALL = Path(__file__).parents[1] / "benchmarks/shippers/install.sh"
CONFIG = """
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}
exporters:
  otlp_http: {{endpoint: "{url}", sending_queue: {{batch: {{flush_timeout: 100ms}}}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    metrics: {{receivers: [otlp], exporters: [otlp_http]}}
    traces: {{receivers: [otlp], exporters: [otlp_http]}}
    logs: {{receivers: [otlp], exporters: [otlp_http]}}
"""


@contextlib.asynccontextmanager
async def collector(folder: Path, receiver: OtlpReceiver) -> AsyncIterator[str]:
    """Runs one that hands everything on to `receiver`; gives its address."""
    binary = (await asyncio.to_thread(_installed)).strip()
    port = free_port()
    (folder / "collector.yaml").write_text(CONFIG.format(port=port, url=receiver.url))
    with (folder / "collector.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            binary, "--config", str(folder / "collector.yaml"), stdout=output, stderr=output
        )
        try:
            async with asyncio.timeout(120):
                while not await _listens(port):
                    assert process.returncode is None, (folder / "collector.log").read_text()
                    await asyncio.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


def _installed() -> str:
    return subprocess.run(["bash", INSTALL, "collector"], stdout=subprocess.PIPE, text=True, check=True).stdout


async def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


async def test_collector_takes_metrics_traces_and_logs_and_sends_them_on_unchanged(tmp_path: Path) -> None:
    (tmp_path / "vllm.log").write_text(
        '{"@timestamp":"2026-11-24T08:00:00Z","level":"error","message":"out of memory","trace_id":"'
        + "0af7651916cd43dd8448eb211c80319c"
        + '"}\n'
        + "".join(f'{{"message":"line {number}"}}\n' for number in range(999))
    )
    async with OtlpReceiver() as receiver, collector(tmp_path, receiver) as url, aiohttp.ClientSession() as session:
        exporter = Exporter(
            Otlp(endpoint=url, interval=0.2),
            session,
            SteadyClock(),
            server="vllm-a",
            host="h",
            samples=lambda: [Sample(labels("dsobs_gpu_utilization_ratio", gpu="0", uuid="GPU-1"), 0.25)],
            engine=lambda: "vllm",
        )
        exporter.start()
        opened = Entry(1000.0, "i", "incident", "opened", {"alerts": ["EngineHung"]}, 1)
        closed = Entry(1060.0, "i", "incident", "closed", {"reason": "resolved"}, 2)
        exporter.line(closed, [opened])
        (tmp_path / "state").mkdir()
        logs = Logs(files=(str(tmp_path / "vllm.log"),), otlp=OtlpLogs(endpoint=url))
        await Shipper(logs, tmp_path / "state", once=True).run()
        async with asyncio.timeout(120):
            while not (receiver.metrics and receiver.traces and len(receiver.records()) >= 1000):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await exporter.stop(5.0)
    (point,) = receiver.metric("hw.gpu.utilization")["gauge"]["dataPoints"]
    assert point["asDouble"] == 0.25
    (span,) = receiver.spans()
    assert (span.name, span.end_time_unix_nano - span.start_time_unix_nano) == ("incident", 60 * 10**9)
    bodies = {value_of(record.body): record for _, record in receiver.records()}
    assert len(receiver.records()) == len(bodies) == 1000
    assert bodies["out of memory"].trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert len({attributes(record.attributes)["log.record.uid"] for record in bodies.values()}) == 1000
