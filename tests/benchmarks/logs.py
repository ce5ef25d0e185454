"""Log shippers on one machine in one run: a file of 300-byte lines to a receiver on loopback.

python -m tests.benchmarks.logs [--lines N] [--rounds N] [ROW ...]

Each round runs every row once, in turn; the figures are medians over the rounds. CPU seconds are those of the shipping
process with its children from its start to its end (wait4), the receiver's are not in it. Installs the rivals first
(shippers/install.sh). Prints a table on stderr and one JSON object.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHIPPERS = Path(__file__).with_name("shippers")
STALL_SECONDS = 30.0
"""Nothing new arrives for so long: the shipper is done, or lost the rest."""
LEVELS = ("INFO", "INFO", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True)
class Job:
    """What a row needs to know."""

    folder: Path
    port: int
    json: Path
    text: Path
    collector: str = ""
    debian: Path = Path()


@dataclass(frozen=True)
class Command:
    """A shipper's command; one that does not end by itself is sent SIGTERM when everything arrived."""

    words: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)


def filled(name: str, job: Job, **more: str) -> str:
    """The path of a configuration with its places filled in."""
    text = (SHIPPERS / name).read_text()
    for key, value in {"STATE": job.folder, "INPUT": job.json, "PORT": job.port, **more}.items():
        text = text.replace(f"@{key}@", str(value))
    path = job.folder / name
    path.write_text(text)
    return str(path)


def dsobs(source: Callable[[Job], str], **settings: str) -> Callable[[Job], Command]:
    """`dsobs logs ship --once`."""

    def command(job: Job) -> Command:
        words = [sys.executable, "-m", "dsobs.cli", "logs", "ship", "--once", "--from", source(job)]
        words += ["--to", f"http://127.0.0.1:{job.port}", "--index", "logs", "--state", str(job.folder / "state")]
        for name, value in {"elasticsearch__compress": "false", **settings}.items():
            words += ["--set", f"logs.{name.replace('__', '.')}={value}"]
        return Command(words)

    return command


def collector(compression: str) -> Callable[[Job], Command]:
    """The OpenTelemetry Collector with settings that lose nothing."""
    return lambda job: Command([job.collector, "--config", filled("collector.yaml", job, COMPRESSION=compression)])


def rsyslog(job: Job) -> Command:
    """Debian's, unpacked."""
    library = job.debian / "usr/lib/x86_64-linux-gnu"
    return Command(
        [
            *(str(job.debian / "usr/sbin/rsyslogd"), "-n", "-f", filled("rsyslog.conf", job)),
            *("-i", str(job.folder / "pid"), "-M", str(library / "rsyslog")),
        ],
        {"LD_LIBRARY_PATH": str(library)},
    )


def syslog_ng(job: Job) -> Command:
    """Debian's, unpacked."""
    root = job.debian
    libraries = (root / "usr/lib/syslog-ng", root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu")
    return Command(
        [
            *(str(root / "usr/sbin/syslog-ng"), "-F", "-f", filled("syslog-ng.conf", job), "--no-caps"),
            *(f"--persist-file={job.folder}/persist", f"--pidfile={job.folder}/pid", f"--control={job.folder}/ctl"),
            *(f"--module-path={root}/usr/lib/syslog-ng/3.38", "--process-mode=foreground"),
        ],
        {"LD_LIBRARY_PATH": ":".join(map(str, libraries))},
    )


ROWS: dict[str, Callable[[Job], Command]] = {
    "dsobs": dsobs(lambda job: f"json:{job.json}"),
    "dsobs-gzip": dsobs(lambda job: f"json:{job.json}", elasticsearch__compress="true"),
    "dsobs-redaction": dsobs(
        lambda job: f"json:{job.json}", transform__redact__kinds="api_key,bearer,email,phone,card,prompt"
    ),
    "dsobs-vllm-text": dsobs(lambda job: f"vllm:{job.text}"),
    "dsobs-plain": dsobs(lambda job: f"plain:{job.json}"),
    "collector": collector("none"),
    "collector-gzip": collector("gzip"),
    "rsyslog": rsyslog,
    "syslog-ng": syslog_ng,
}


@dataclass(frozen=True)
class Result:
    """Of one run."""

    arrived: int
    cpu_seconds: float
    real_seconds: float
    peak_mib: float


def write_input(folder: Path, count: int) -> tuple[Path, Path]:
    """Files of `count` JSON lines of 300 bytes and of vLLM's text lines, each with its number."""
    as_json, text = folder / "in.log", folder / "vllm.log"
    padding = "the scheduler moved a request from waiting to running; " * 4
    with as_json.open("w") as lines, text.open("w") as plain:
        for number in range(count):
            level = LEVELS[number % 5]
            second, milli = divmod(number, 1000)
            clock = f"{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"
            head = (
                f'{{"@timestamp":"2026-11-24T{clock}.{milli:03}Z","level":"{level}","logger":"vllm.engine",'
                f'"request_id":"cmpl-{number:08x}","tokens":{number % 4096},"message":"#{number:08}# '
            )
            lines.write(head + padding[: 297 - len(head)] + '"}\n')
            plain.write(
                f"(EngineCore pid=4711) {level} 11-24 {clock} [core.py:{number % 900}] #{number:08}# {padding[:120]}\n"
            )
    return as_json, text


@contextmanager
def receiver(count: int) -> Iterator[tuple[int, Callable[[], int]]]:
    """Port, and how many different lines came."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.shippers.sink", str(count)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())

        def arrived() -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/arrived", timeout=30) as answer:
                return int(answer.read())

        yield port, arrived
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def run(command: Command, arrived: Callable[[], int], count: int, log: Path) -> Result:
    """Runs a shipper until everything arrived or nothing does any more."""
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command.words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **command.environ}
        )
    seen, moved = 0, began
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        now = time.monotonic()
        if pid:
            break
        if (there := arrived()) != seen:
            seen, moved = there, now
        if (seen == count and now - moved > 2.0) or now - moved > STALL_SECONDS:
            process.send_signal(signal.SIGTERM)
            pid, status, usage = os.wait4(process.pid, 0)
            break
        time.sleep(0.2)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Result(arrived(), usage.ru_utime + usage.ru_stime, moved - began, usage.ru_maxrss / 1024)


def installed(what: str) -> str:
    """Path of a rival, which is built or unpacked first."""
    done = subprocess.run(["bash", str(SHIPPERS / "install.sh"), what], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def measure(rows: Sequence[str], count: int, rounds: int) -> dict[str, list[Result]]:
    """Row → its runs."""
    results: dict[str, list[Result]] = {row: [] for row in rows}
    rivals = any(not row.startswith("dsobs") for row in rows)
    binary, debian = (installed("collector"), Path(installed("debian"))) if rivals else ("", Path())
    with tempfile.TemporaryDirectory(prefix="dsobs-logs-") as folder:
        as_json, text = write_input(Path(folder), count)
        for number in range(rounds):
            for row in rows:
                state = Path(folder) / f"{row}-{number}"
                state.mkdir()
                with receiver(count) as (port, arrived):
                    command = ROWS[row](Job(state, port, as_json, text, binary, debian))
                    result = run(command, arrived, count, state / "log")
                results[row].append(result)
                print(
                    f"{number + 1}/{rounds} {row}: {count / result.cpu_seconds:,.0f} records per CPU second, "
                    f"{result.real_seconds:.0f} s, {result.peak_mib:.0f} MiB, {result.arrived} of {count}",
                    file=sys.stderr,
                    flush=True,
                )
                if result.arrived < count:
                    print((state / "log").read_text(errors="replace")[-1000:], file=sys.stderr)
    return results


def summary(results: Mapping[str, Sequence[Result]], count: int) -> dict[str, Any]:
    """Medians by row."""
    return {
        row: {
            "records_per_cpu_second": round(statistics.median(one.arrived / one.cpu_seconds for one in runs)),
            "peak_mib": round(statistics.median(one.peak_mib for one in runs), 1),
            "least_arrived": min(one.arrived for one in runs),
            "of": count,
            "real_seconds": round(statistics.median(one.real_seconds for one in runs), 1),
        }
        for row, runs in results.items()
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description="Log shippers, compared.")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of: {', '.join(ROWS)}")
    args = parser.parse_args()
    results = measure(args.rows or list(ROWS), args.lines, args.rounds)
    told = {"lines": args.lines, "rounds": args.rounds, "python": platform.python_version()}
    print(json.dumps({**told, **summary(results, args.lines)}))


if __name__ == "__main__":
    main()
