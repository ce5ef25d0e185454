"""What parsing the recording's busy `/metrics` page costs, beside prometheus_client's parser.

`python -m tests.benchmarks.parse [ROUNDS]` prints one JSON object: CPU microseconds a page (least of the rounds), and
how many times prometheus_client's that is.

- cold: a new parser for each page, as after a start;
- steady: one parser over the successive pages of the recording's busy phases, as at 1 Hz: the figure that counts;
- same: one parser over one page that does not change, the best case.
"""

import gzip
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dsobs.model.samples import labels_of
from dsobs.series.exposition import Parser

RECORDING = Path(__file__).parents[1] / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
BUSY = slice(46, 180)
"""600, then 400 clients (the recording's README)."""
PAGE = 110


def least(work: Callable[[], object], rounds: int) -> float:
    """CPU microseconds of the fastest of `rounds`."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best * 1e6


def measure(rounds: int = 20) -> dict[str, float]:
    """All figures; raises if the two parsers do not agree on the page."""
    with gzip.open(RECORDING, "rt") as file:
        pages = [json.loads(line)["metrics"] for line in file]
    page, busy = pages[PAGE], [text.encode() for text in pages[BUSY]]
    theirs = [
        (labels_of({**sample.labels, "__name__": sample.name}), sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    ]
    if sorted(theirs) != sorted((sample.labels, sample.value) for sample in Parser().parse(page).samples):
        raise AssertionError("not the same samples")

    reference = least(lambda: list(text_string_to_metric_families(page)), rounds)
    cold = least(lambda: Parser().parse(page), rounds)
    warm = Parser()
    warm.parse(page)
    same = least(lambda: warm.parse(page), 5 * rounds)

    def follow() -> None:
        for body in busy:
            warm.parse(body)

    steady = least(follow, rounds) / len(busy)
    return {
        "lines": page.count("\n"),
        "samples": len(theirs),
        "prometheus_client_us": round(reference, 1),
        "cold_us": round(cold, 1),
        "steady_us": round(steady, 1),
        "same_us": round(same, 1),
        "cold_ratio": round(reference / cold, 1),
        "steady_ratio": round(reference / steady, 1),
        "same_ratio": round(reference / same, 1),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 20)))
