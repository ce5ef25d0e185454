"""What one NVML reading and each of its questions cost, beside `nvidia-smi` asked for the same.

`python -m tests.benchmarks.nvml [READINGS]` prints one JSON object; needs an NVIDIA driver. Readings are a second apart
as in use: the driver answers from its own cache when asked more often.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dsobs_nvml import QUESTIONS, Nvml, NvmlUnavailable

QUERY = (
    "index,uuid,name,memory.total,memory.used,utilization.gpu,utilization.memory,power.draw,enforced.power.limit,"
    "temperature.gpu,clocks.sm,clocks.mem,clocks_event_reasons.active"
)


def resident_mib() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def spread(values: list[float]) -> dict[str, float]:
    """Mean, median and greatest of milliseconds."""
    return {
        "mean": round(statistics.fmean(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def measure(readings: int = 30) -> dict[str, Any]:
    """Milliseconds, wall and CPU, of `Nvml.read`, and MiB that `init` costs; NvmlUnavailable without a driver."""
    before = resident_mib()
    source = Nvml()
    started = time.perf_counter()
    source.init()
    init_ms = (time.perf_counter() - started) * 1000
    source.read()
    after = resident_mib()
    wall: list[float] = []
    cpu: list[float] = []
    try:
        for _ in range(readings):
            time.sleep(1)
            cpu_at, at = time.thread_time(), time.perf_counter()
            cards = source.read()
            wall.append((time.perf_counter() - at) * 1000)
            cpu.append((time.thread_time() - cpu_at) * 1000)
    finally:
        source.shutdown()
    return {
        "cards": len(cards),
        "readings": readings,
        "init_ms": round(init_ms, 1),
        "resident_mib_before": round(before, 1),
        "resident_mib_added": round(after - before, 1),
        "read_wall_ms": spread(wall),
        "read_cpu_ms": spread(cpu),
    }


def measure_questions(rounds: int = 10) -> dict[str, Any]:
    """Milliseconds of each question of the first card, wall and CPU, `rounds` times a second apart, and the refusal of
    one that it refused. NvmlUnavailable without a driver."""
    import pynvml

    source = Nvml()
    source.init()
    found: dict[str, Any] = {}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        for question in QUESTIONS:
            found[question.name] = {"every": question.every, "table_ms": question.cost_ms}
        times: dict[str, tuple[list[float], list[float]]] = {question.name: ([], []) for question in QUESTIONS}
        for _ in range(rounds):
            time.sleep(1)
            for question in QUESTIONS:
                cpu_at, at = time.thread_time(), time.perf_counter()
                try:
                    question.ask(pynvml, handle)
                except pynvml.NVMLError as error:
                    found[question.name]["refused"] = str(error)
                times[question.name][0].append((time.perf_counter() - at) * 1000)
                times[question.name][1].append((time.thread_time() - cpu_at) * 1000)
    finally:
        source.shutdown()
    for name, (wall, cpu) in times.items():
        found[name] |= {"wall_ms": spread(wall), "cpu_ms": spread(cpu)}
    return found


def mean_a_second(questions: dict[str, Any]) -> float:
    """Milliseconds of wall time a second and card, by the table's intervals; what was refused does not count."""
    asked = [question for question in questions.values() if "refused" not in question]
    return round(sum(float(question["wall_ms"]["mean"]) / (question["every"] or 1.0) for question in asked), 3)


def measure_nvidia_smi(runs: int = 10) -> dict[str, Any] | None:
    """The same of a process of nvidia-smi for each reading; None where it is not installed."""
    if shutil.which("nvidia-smi") is None:
        return None
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(runs):
        before, at = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"], check=True, capture_output=True
        )
        wall.append((time.perf_counter() - at) * 1000)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
    return {"runs": runs, "wall_ms": spread(wall), "cpu_ms": spread(cpu)}


def run(readings: int = 30) -> dict[str, Any]:
    """Both, and how many times less a reading costs; `skipped` says why there is nothing."""
    try:
        ours = measure(readings)
    except NvmlUnavailable as error:
        return {"skipped": str(error)}
    questions = measure_questions()
    peer = measure_nvidia_smi()
    result: dict[str, Any] = {"dsobs_nvml": ours, "nvidia_smi": peer, "questions": questions}
    result["mean_ms_a_second"] = mean_a_second(questions)
    if peer is not None:
        result["wall_ratio"] = round(peer["wall_ms"]["mean"] / ours["read_wall_ms"]["mean"], 1)
        result["cpu_ratio"] = round(peer["cpu_ms"]["mean"] / ours["read_cpu_ms"]["mean"], 1)
    return result


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:2]))))
