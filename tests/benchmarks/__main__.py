"""`make bench`: all benchmarks, one JSON object each; each part in a process of its own, so that none takes memory or
time from the next."""

import subprocess
import sys
import time

PARTS = (
    ("cycle", "parsing beside prometheus_client, one second, replay", "15 seconds"),
    ("query", "queries over a range, 8 engines", "half a minute"),
    ("day", "memory over a virtual day", "four minutes"),
    ("process", "dsobs run beside a busy engine", "eleven minutes"),
    ("page", "the status page with five viewers", "four minutes"),
    ("log_formats", "parsing, changing and redacting log records", "half a minute"),
    ("logs", "log shippers, with rivals", "ten minutes, more the first time"),
    ("log_endurance", "idle files, an outage, a backlog of 5,000,000 records", "ten minutes"),
    ("kubernetes", "fault to restart in a real cluster, 20 runs", "seven minutes"),
    ("gpus", "eight cards: series, the exporter's page, that page read", "five seconds"),
    ("nvml", "NVML, where there is a driver", "a minute"),
)


def main() -> int:
    """The exit status: 0 if every part gave figures."""
    failed = 0
    for number, (name, what, takes) in enumerate(PARTS, 1):
        print(f"{number}/{len(PARTS)} {name}: {what} (about {takes})", file=sys.stderr, flush=True)
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=False)
        failed += done.returncode != 0
        print(f"    {name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
