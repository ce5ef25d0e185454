"""The proof on a real card. By hand, where an NVIDIA driver is: `python exporters/nvml/tests/real_gpu.py [FOLDER]`.

Needs nvidia-ml-py, prometheus-client and pytest; PyTorch with CUDA for load, else that part is left out. Runs the
contracts of sources and exporter on the card, compares values with nvidia-smi's idle and under load, provokes harmless
XIDs in processes of their own and sees them told, runs the exporter as a process over HTTP with DCGM's names, measures
what each question costs, and prints one JSON object, which it also writes to FOLDER/nvml.json. Exits with 1 if anything
did not hold; `wrong` says what.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parents[2]))

from dsobs_nvml import CLOCK_EVENT_REASONS, FAMILIES, CardSeries, Nvml, NvmlUnavailable, Reading, record_of_readings  # noqa: E402 (may not be installed)

MATMUL = """
import torch, time
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
end = time.time() + 25
print("working", flush=True)
while time.time() < end:
    for _ in range(50): b = a @ a
    torch.cuda.synchronize()
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
RARE: tuple[tuple[str, str, dict[str, str], float, float], ...] = (
    # nvidia-smi's name, ours, its labels, nvidia-smi's unit in ours, what may lie between two moments
    ("memory.reserved", "memory_reserved_bytes", {}, 2**20, 2**20),
    ("power.limit", "power_limit_setting_watts", {"setting": "requested"}, 1, 0.01),
    ("power.default_limit", "power_limit_setting_watts", {"setting": "default"}, 1, 0.01),
    ("power.min_limit", "power_limit_setting_watts", {"setting": "min"}, 1, 0.01),
    ("power.max_limit", "power_limit_setting_watts", {"setting": "max"}, 1, 0.01),
    ("temperature.memory", "memory_temperature_celsius", {}, 1, 4),
    ("temperature.gpu.tlimit", "temperature_margin_celsius", {}, 1, 4),
    ("fan.speed", "fan_speed_ratio", {}, 0.01, 0.05),
    ("pstate", "performance_state", {}, 1, 0),
    ("clocks.max.sm", "max_clock_hertz", {"domain": "sm"}, 1e6, 1),
    ("clocks.max.memory", "max_clock_hertz", {"domain": "memory"}, 1e6, 1),
    ("clocks.applications.graphics", "application_clock_hertz", {"domain": "sm"}, 1e6, 1),
    ("clocks.applications.memory", "application_clock_hertz", {"domain": "memory"}, 1e6, 1),
    ("ecc.mode.current", "ecc_enabled", {}, 1, 0),
    ("ecc.errors.corrected.volatile.total", "ecc_errors_total", {"type": "corrected"}, 1, 0),
    ("ecc.errors.uncorrected.volatile.total", "ecc_errors_total", {"type": "uncorrected"}, 1, 0),
    ("ecc.errors.corrected.aggregate.total", "ecc_errors_lifetime_total", {"type": "corrected"}, 1, 0),
    ("ecc.errors.uncorrected.aggregate.total", "ecc_errors_lifetime_total", {"type": "uncorrected"}, 1, 0),
    ("remapped_rows.correctable", "remapped_rows", {"cause": "correctable"}, 1, 0),
    ("remapped_rows.uncorrectable", "remapped_rows", {"cause": "uncorrectable"}, 1, 0),
    ("remapped_rows.pending", "row_remap_pending", {}, 1, 0),
    ("remapped_rows.failure", "row_remap_failed", {}, 1, 0),
    ("pcie.link.gen.gpucurrent", "pcie_link_generation", {}, 1, 4),
    ("pcie.link.width.current", "pcie_link_width", {}, 1, 0),
    ("pcie.link.gen.max", "pcie_link_max_generation", {}, 1, 0),
    ("pcie.link.width.max", "pcie_link_max_width", {}, 1, 0),
    ("persistence_mode", "persistence_mode", {}, 1, 0),
    ("mig.mode.current", "mig_enabled", {}, 1, 0),
    (
        "clocks_event_reasons_counters.sw_power_cap",
        "clock_event_seconds_total",
        {"reason": "sw_power_cap"},
        1e-6,
        12.0,
    ),
    (
        "clocks_event_reasons_counters.sw_thermal_slowdown",
        "clock_event_seconds_total",
        {"reason": "sw_thermal_slowdown"},
        1e-6,
        12.0,
    ),
)
"""Values that are asked each 10 s may differ by so much of a running counter."""
WORDS = {"Enabled": 1.0, "Disabled": 0.0, "Yes": 1.0, "No": 0.0, "Active": 1.0, "Not Active": 0.0}
Wrong = list[str]
Section = tuple[Any, Wrong]


def ask(query: str, kind: str = "gpu") -> list[list[str]]:
    """nvidia-smi's answer, a list of fields for each line."""
    command = ["nvidia-smi", f"--query-{kind}={query}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [[field.strip() for field in line.split(",")] for line in lines]


def number(text: str) -> float | None:
    """A number of nvidia-smi's; None for N/A and what is none."""
    text = text.strip()
    if text in WORDS:
        return WORDS[text]
    match = re.fullmatch(r"P?(-?\d+(?:\.\d+)?)", text)
    return float(match[1]) if match else None


def compare(source: Nvml) -> Section:
    """Each value of each reading beside nvidia-smi's, and what differs by more than two moments can."""
    rows: list[dict[str, Any]] = []
    wrong: Wrong = []
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


def compare_rare(reading: Reading) -> Section:
    """The same of what is asked rarely. What neither knows is equal; what nvidia-smi does not call so is left out."""
    rows: list[dict[str, Any]] = []
    wrong: Wrong = []
    for name, family, labels, unit, tolerance in RARE:
        try:
            text = ask(name)[0][0]
        except subprocess.CalledProcessError:
            rows.append({"name": name, "nvidia_smi": "no such query"})
            continue
        key = f"dsobs_gpu_{family}", tuple(labels.items())
        ours = next((m.value for m in reading.more if (m.name, m.labels) == key), None)
        told = number(text)
        theirs = None if told is None else told * unit
        rows.append({"name": name, "dsobs_nvml": ours, "nvidia_smi": text})
        if (ours is None) != (theirs is None) or (
            ours is not None and theirs is not None and abs(ours - theirs) > tolerance
        ):
            wrong.append(f"{name}: {ours}, nvidia-smi {text} = {theirs}")
    return rows, wrong


def contracts(environment: dict[str, str]) -> Section:
    """The contract suites with the real source."""
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(HERE),
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
    ]
    ended = subprocess.run(
        [
            *pytest,
            "--import-mode=importlib",
            "-W",
            "error",
            str(HERE / "test_contract.py"),
            str(HERE / "test_exporter.py"),
        ],
        env={**environment, "DSOBS_REAL_GPU": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = [] if ended.returncode == 0 else [f"contract:\n{ended.stdout[-6000:]}{ended.stderr[-1000:]}"]
    return ended.stdout.strip().splitlines()[-1:], wrong


def idle(source: Nvml) -> Section:
    """One reading of the idle card."""
    readings = source.read()
    compared, wrong = compare(source)
    rare, more = compare_rare(readings[0])
    wrong += more
    series = CardSeries()
    series.take(readings, time.time())
    told = {row.name for row in series.rows(readings)}
    missing = sorted(set(FAMILIES) - told)
    found = {
        "record": record_of_readings(readings),
        "compared": compared,
        "rare": rare,
        "families_without_value": missing,
    }
    return found, wrong


def under_load(source: Nvml) -> Section:
    """Readings while a matrix product runs, beside nvidia-smi."""
    with subprocess.Popen([sys.executable, "-c", MATMUL], stdout=subprocess.PIPE, text=True) as load:
        try:
            assert load.stdout is not None
            if load.stdout.readline() != "working\n":
                return {"skipped": "no PyTorch with CUDA"}, []
            series = []
            for _ in range(12):
                time.sleep(1)
                series.append(record_of_readings(source.read()))
            rows, wrong = compare(source)
            reading = source.read()[0]
            rare, differences = compare_rare(reading)
            listed = ask("pid,used_memory", "compute-apps")
        finally:
            load.terminate()
    wrong += differences
    if (reading.utilization_ratio or 0) < 0.9:
        wrong.append(f"utilization under load: {reading.utilization_ratio}")
    ours = [[process.pid, (process.memory_bytes or 0) / 2**20] for process in reading.processes or ()]
    if not ours or [[float(field) for field in line] for line in listed] != [[pid, round(mib)] for pid, mib in ours]:
        wrong.append(f"processes: {ours}, nvidia-smi {listed}")
    found = {"compared": rows, "rare": rare, "processes_mib": ours, "nvidia_smi_processes": listed, "records": series}
    return found, wrong


def provoke(xid: int) -> tuple[bool, str]:
    """Whether the fault was made, and CUDA's word."""
    command = [sys.executable, str(HERE / "faults.py"), str(xid)]
    fault = subprocess.run(command, capture_output=True, text=True, check=False)
    return fault.returncode == 0, (fault.stdout + fault.stderr).strip()[-500:]


def xids(source: Nvml) -> Section:
    """The XIDs that NVML tells of processes that fault."""
    found: dict[str, Any] = {}
    wrong: Wrong = []
    for xid in (31, 13):
        source.read()
        made, word = provoke(xid)
        seen: list[int] = []
        end = time.monotonic() + 5
        while made and xid not in seen and time.monotonic() < end:
            time.sleep(0.2)
            seen += source.read()[0].xids or ()
        found[str(xid)] = {"provoked": made, "cuda": word, "seen": seen}
        if xid == 31 and xid not in seen:
            wrong.append(f"a page fault gave XIDs {seen}, not 31 ({word})")
    return found, wrong


def page(address: str, accept: str = "") -> str:
    """The exporter's page."""
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def value(text: str, name: str, *labels: str) -> float | None:
    """Of the first series of this name with these labels."""
    for line in text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(label in line for label in labels):
            return float(line.rpartition(" ")[2])
    return None


def exporter(environment: dict[str, str], *flags: str) -> Section:
    """The exporter as a process of its own, for half a minute."""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
    from prometheus_client.parser import text_string_to_metric_families as read_text

    wrong: Wrong = []
    with tempfile.TemporaryDirectory() as folder:
        textfile = Path(folder) / "gpu.prom"
        command = [sys.executable, "-m", "dsobs_nvml", "--listen", "127.0.0.1:0", "--dcgm-names", *flags]
        command += ["--textfile", str(textfile), "--textfile-interval", "1", "--pod-resources", "off"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            try:
                assert process.stderr is not None
                address = ""
                for line in process.stderr:
                    match = re.search(r"serving on http://(\S+)/metrics", line)
                    if match:
                        address = match[1]
                        break
                time.sleep(3)
                first = page(address)
                began = time.monotonic()
                made, _ = provoke(31)
                time.sleep(20)
                seconds = time.monotonic() - began
                text = page(address)
                families = {"text": sum(1 for _ in read_text(text))}
                openmetrics = page(address, "application/openmetrics-text;version=1.0.0")
                families["openmetrics"] = sum(1 for _ in read_openmetrics(openmetrics))
                power, listed = value(text, "DCGM_FI_DEV_POWER_USAGE"), float(ask("power.draw")[0][0])
                if power is None or abs(power - listed) > 60:
                    wrong.append(f"DCGM_FI_DEV_POWER_USAGE {power}, nvidia-smi {listed}")
                used, mib = value(text, "DCGM_FI_DEV_FB_USED"), float(ask("memory.used")[0][0])
                if used is None or abs(used - mib) > 1:
                    wrong.append(f"DCGM_FI_DEV_FB_USED {used}, nvidia-smi {mib}")
                counted = value(text, "dsobs_gpu_xid_errors_total", 'xid="31"')
                if made and not counted:
                    wrong.append(f"XID 31 was provoked and the exporter counted {counted}")
                written = textfile.read_text(encoding="utf-8") if textfile.exists() else ""
                if value(written, "dsobs_nvml_up") != 1.0:
                    wrong.append("the textfile does not say that cards are read")
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=10)
            finally:
                # Whatever went wrong above must not leave it running.
                process.terminate()
        if process.returncode != 0 or textfile.exists():
            wrong.append(f"SIGTERM: exit code {process.returncode}, textfile left: {textfile.exists()}")
    cpu = (value(text, "process_cpu_seconds_total") or 0) - (value(first, "process_cpu_seconds_total") or 0)
    costs = {}
    for line in text.splitlines():
        match = re.match(r'dsobs_nvml_question_seconds_total\{question="(\w+)"\} (\S+)', line)
        if match:
            times = value(text, "dsobs_nvml_questions_total", f'question="{match[1]}"') or 0
            costs[match[1]] = {
                "times": int(times),
                "mean_ms": round(float(match[2]) / times * 1000, 3) if times else None,
            }
    found = {
        "families": families,
        "page_bytes": len(text),
        "cpu_percent_of_a_core": round(cpu / seconds * 100, 2),
        "resident_mib": round((value(text, "process_resident_memory_bytes") or 0) / 2**20, 1),
        "xid_31": counted,
        "costs": costs,
        "page": text,
    }
    return found, wrong


def speed(environment: dict[str, str]) -> Section:
    """What a reading and each question cost."""
    bench = [sys.executable, str(HERE.parents[2] / "tests/benchmarks/nvml.py")]
    ended = subprocess.run(bench, check=False, capture_output=True, text=True, env=environment)
    if ended.returncode != 0:
        return None, [f"benchmark: {ended.stderr[-2000:]}"]
    told = json.loads(ended.stdout)
    wrong = [
        f"question {name} takes {cost['wall_ms']['median']} ms and is asked in every reading"
        for name, cost in told.get("questions", {}).items()
        if not cost["every"] and "wall_ms" in cost and cost["wall_ms"]["median"] > 1.0
    ]
    return told, wrong


def main(folder: Path | None, *flags: str) -> int:
    """Runs everything; 0 if all held. One part that fails leaves the others."""
    source = Nvml()
    try:
        source.init()
    except NvmlUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result: dict[str, Any] = {"made": datetime.now(UTC).strftime("%Y-%m-%d"), "python": sys.version.split()[0]}
    wrong: Wrong = []
    parts: dict[str, Callable[[], Section]] = {
        "driver": lambda: (ask("driver_version")[0][0], []),
        "contract": lambda: contracts(environment),
        "idle": lambda: idle(source),
        "load": lambda: under_load(source),
        "provoked_xids": lambda: xids(source),
        "exporter": lambda: exporter(environment, *flags),
        "speed": lambda: speed(environment),
    }
    for name, part in parts.items():
        try:
            result[name], differences = part()
        except Exception:  # noqa: BLE001 - told in `wrong`, and the other parts still run
            differences = [f"{name}: {traceback.format_exc()[-3000:]}"]
        wrong += differences
    reasons = source.read()[0].clock_event_reasons or 0
    unnamed = reasons & ~sum(reason.bit for reason in CLOCK_EVENT_REASONS)
    if unnamed:
        wrong.append(f"clock event bits without a name: {unnamed:#x}")
    source.shutdown()
    result["wrong"] = wrong
    text = json.dumps(result, indent=1)
    for answer in ask("uuid"):
        text = text.replace(answer[0], "GPU-00000000-0000-0000-0000-000000000000")
    print(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nvml.json").write_text(text + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
