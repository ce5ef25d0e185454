"""What is kept of an incident: recording, state and the engine's last log lines."""

import asyncio
import json
from pathlib import Path
from typing import Any

from dsobs.config.logs import Logs
from dsobs.model.observation import Unknown
from dsobs.model.runtime import Runtime
from dsobs.model.view import View
from dsobs.pipeline import Pipeline
from dsobs.recorder.flight import FlightRecorder, prune_bundles
from dsobs.sidecar.log_tails import engine_tail
from dsobs.sidecar.plain import plain

EVIDENCE_SECONDS = 600.0
LOG_TAIL_LINES = 500


async def gather_evidence(
    folder: Path,
    view: View,
    now: float,
    *,
    recorder: FlightRecorder,
    pipeline: Pipeline,
    runtime: Runtime | Unknown,
    logs: Logs,
    max_bytes: int,
) -> dict[str, Any]:
    """Writes it to `folder`; what is there, for the ledger. `max_bytes`: of all incidents' folders beside it."""

    def gather() -> int:
        folder.mkdir(parents=True, exist_ok=True)
        size = recorder.copy_recent(now - EVIDENCE_SECONDS, folder / "recording.jsonl.gz")
        state = {"view": plain(view), "gpus": plain(pipeline.gpus), "alerts": plain(pipeline.alerts())}
        (folder / "state.json").write_text(json.dumps(state, indent=1, default=str), encoding="utf-8")
        return size

    size = await asyncio.to_thread(gather)
    detail: dict[str, Any] = {"folder": str(folder), "recording_bytes": size}
    tail = await engine_tail(runtime, logs, LOG_TAIL_LINES)
    if isinstance(tail, Unknown):
        detail["log"] = tail.reason
    else:
        text = "\n".join(tail.lines) + "\n"
        await asyncio.to_thread((folder / "engine.log").write_text, text, "utf-8")
        detail["log_lines"] = len(tail.lines)
    await asyncio.to_thread(prune_bundles, folder.parent, max_bytes)
    return detail
