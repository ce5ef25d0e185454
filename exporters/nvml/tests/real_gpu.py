"""The proof on a real card. By hand, where an NVIDIA driver is: `python exporters/nvml/tests/real_gpu.py [FOLDER]`.

Runs the contract with the real source, compares it with nvidia-smi, puts the card under load (PyTorch, if it is there),
provokes one harmless XID (a page fault in a process of its own: XID 31), measures, and prints one JSON object, which
it also writes to FOLDER/nvml.json. Exits with 1 if anything did not hold.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parents[2]))

from dsobs_nvml import CLOCK_EVENT_REASONS, Nvml, NvmlUnavailable, Reading, record_of_readings  # noqa: E402 (may not be installed)

MATMUL = """
import torch, time
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
end = time.time() + 12
print("working", flush=True)
while time.time() < end:
    for _ in range(50): b = a @ a
    torch.cuda.synchronize()
"""
FAULT = """
import cupy
kernel = cupy.RawKernel('extern "C" __global__ void fault(int *p) { p[threadIdx.x] = 1; }', "fault")
kernel((1,), (32,), (cupy.uint64(0x10),))
try:
    cupy.cuda.runtime.deviceSynchronize()
except cupy.cuda.runtime.CUDARuntimeError as error:
    print(error)
"""
COMPARED: tuple[tuple[str, Callable[[Reading], float | None], float], ...] = (
    # nvidia-smi's name, the same in its unit, what may lie between two moments
    ("memory.total", lambda r: r.memory_total_bytes and r.memory_total_bytes / 2**20, 1),
    ("memory.used", lambda r: r.memory_used_bytes and r.memory_used_bytes / 2**20, 1),
    ("utilization.gpu", lambda r: r.utilization_ratio and r.utilization_ratio * 100, 15),
    ("utilization.memory", lambda r: r.memory_utilization_ratio and r.memory_utilization_ratio * 100, 15),
    ("power.draw", lambda r: r.power_watts, 60),
    ("enforced.power.limit", lambda r: r.power_limit_watts, 0.01),
    ("temperature.gpu", lambda r: r.temperature_celsius, 3),
    ("clocks.sm", lambda r: r.sm_clock_hertz and r.sm_clock_hertz / 1e6, 200),
    ("clocks.mem", lambda r: r.memory_clock_hertz and r.memory_clock_hertz / 1e6, 1),
)


def ask(query: str, kind: str = "gpu") -> list[list[str]]:
    """nvidia-smi's answer, a list of fields for each line."""
    command = ["nvidia-smi", f"--query-{kind}={query}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [[field.strip() for field in line.split(",")] for line in lines]


def compare(source: Nvml) -> tuple[list[dict[str, Any]], list[str]]:
    """Each value beside nvidia-smi's, and what differs by more than two moments can."""
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    answers = ask("index,uuid,name," + ",".join(name for name, _, _ in COMPARED))
    for reading, answer in zip(source.read(), answers, strict=True):
        if [str(reading.index), reading.uuid, reading.name] != answer[:3]:
            wrong.append(f"identity: {reading.index} {reading.name}, nvidia-smi {answer[0]} {answer[2]}")
        for (name, value_of, tolerance), text in zip(COMPARED, answer[3:], strict=True):
            value = value_of(reading)
            rows.append({"name": name, "dsobs_nvml": value, "nvidia_smi": text, "tolerance": tolerance})
            if value is None or abs(value - float(text)) > tolerance:
                wrong.append(f"{name}: {value}, nvidia-smi {text}")
    return rows, wrong


def under_load(source: Nvml) -> tuple[dict[str, Any], list[str]]:
    """Readings while a matrix product runs, beside nvidia-smi."""
    with subprocess.Popen([sys.executable, "-c", MATMUL], stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        if load.stdout.readline() != "working\n":
            return {"skipped": "no PyTorch with CUDA"}, []
        series = []
        for _ in range(6):
            time.sleep(1)
            series.append(record_of_readings(source.read()))
        rows, wrong = compare(source)
        reading = source.read()[0]
        listed = ask("pid,used_memory", "compute-apps")
        load.terminate()
    if (reading.utilization_ratio or 0) < 0.9:
        wrong.append(f"utilization under load: {reading.utilization_ratio}")
    ours = [[process.pid, (process.memory_bytes or 0) / 2**20] for process in reading.processes or ()]
    if not ours or [[float(field) for field in line] for line in listed] != [[pid, round(mib)] for pid, mib in ours]:
        wrong.append(f"processes: {ours}, nvidia-smi {listed}")
    return {"compared": rows, "processes_mib": ours, "nvidia_smi_processes": listed, "records": series}, wrong


def provoked_xids(source: Nvml) -> list[int] | str:
    """The XIDs that NVML tells of a process that writes to an address that is not mapped."""
    source.read()
    fault = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, text=True, check=False)
    if fault.returncode != 0:
        return f"not provoked: {fault.stderr.strip().splitlines()[-1:]}"
    seen: list[int] = []
    end = time.monotonic() + 5
    while not seen and time.monotonic() < end:
        time.sleep(0.2)
        seen += source.read()[0].xids or ()
    return seen


def main(folder: Path | None) -> int:
    """Runs everything; 0 if all held."""
    source = Nvml()
    try:
        source.init()
    except NvmlUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pytest = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(HERE), "-p", "no:cacheprovider"]
    contract = subprocess.run(
        [*pytest, "-p", "no:asyncio", "--import-mode=importlib", "-W", "error", str(HERE)],
        env={**environment, "DSOBS_REAL_GPU": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = [] if contract.returncode == 0 else [f"contract:\n{contract.stdout[-4000:]}{contract.stderr[-1000:]}"]
    idle = record_of_readings(source.read())
    compared, differences = compare(source)
    wrong += differences
    load, differences = under_load(source)
    wrong += differences
    xids = provoked_xids(source)
    if isinstance(xids, list) and 31 not in xids:
        wrong.append(f"a page fault gave XIDs {xids}, not 31")
    reasons = source.read()[0].clock_event_reasons or 0
    unnamed = reasons & ~sum(reason.bit for reason in CLOCK_EVENT_REASONS)
    if unnamed:
        wrong.append(f"clock event bits without a name: {unnamed:#x}")
    source.shutdown()

    bench = [sys.executable, str(HERE.parents[2] / "tests/benchmarks/nvml.py")]
    speed = json.loads(subprocess.run(bench, check=True, capture_output=True, text=True, env=environment).stdout)

    result = {
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "driver": ask("driver_version")[0][0],
        "python": sys.version.split()[0],
        "contract": contract.stdout.strip().splitlines()[-1:],
        "idle": {"record": idle, "compared": compared},
        "load": load,
        "provoked_xids": xids,
        "speed": speed,
        "wrong": wrong,
    }
    text = json.dumps(result, indent=1)
    for uuid in {reading[0] for reading in ask("uuid")}:
        text = text.replace(uuid, "GPU-00000000-0000-0000-0000-000000000000")
    print(text)
    if folder is not None:
        (folder / "nvml.json").write_text(text + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
