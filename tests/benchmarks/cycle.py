"""What one second costs: parsing against prometheus_client's parser, and a whole turn of the pipeline.

python -m tests.benchmarks.cycle
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from dsobs.config import Config
from dsobs.model.alert import Transition
from dsobs.model.observation import Observation
from dsobs.model.samples import labels_of
from dsobs.pipeline import Pipeline, rule_groups
from dsobs.promql import Sliced
from dsobs.recorder.records import read_records
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Ledger
from dsobs.replay import observation_of
from dsobs.rules.evaluator import Evaluator
from dsobs.series.exposition import Parser
from dsobs.series.store import Store

RECORDING = Path(__file__).parents[1] / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
BUSY = slice(50, 175)
"""Seconds of the recording in which the server works."""


def milliseconds(work: Any, *arguments: Any) -> float:
    """CPU time of one call, ms."""
    begun = time.process_time_ns()
    work(*arguments)
    return (time.process_time_ns() - begun) / 1e6


def peer(text: str) -> list[Any]:
    """prometheus_client's samples."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def parsing(pages: list[str]) -> dict[str, float]:
    """Both parsers over the same busy pages, in turn; medians, ms CPU a page. AssertionError where they do not agree.

    `dsobs_ms`: successive pages, as at 1 Hz; `same`: a page once more; `first`: a new parser, as after a start.
    """
    parser = Parser()
    parser.parse(pages[0])
    ours, theirs, cold, same = [], [], [], []
    for page in pages:
        ours.append(milliseconds(parser.parse, page))
        same.append(milliseconds(parser.parse, page))
        theirs.append(milliseconds(peer, page))
        cold.append(milliseconds(Parser().parse, page))
    mine = sorted((sample.labels, sample.value) for sample in parser.parse(pages[-1]).samples)
    assert mine == sorted((labels_of({**s.labels, "__name__": s.name}), s.value) for s in peer(pages[-1]))
    told = {"dsobs_ms": ours, "dsobs_same_page_ms": same, "dsobs_first_page_ms": cold, "prometheus_client_ms": theirs}
    found = {name: statistics.median(values) for name, values in told.items()}
    found["ratio"] = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    found["ratio_first_page"] = statistics.median(b / a for a, b in zip(cold, theirs, strict=True))
    return found


def turns(records: list[dict[str, Any]]) -> dict[str, float]:
    """Parse, map, derive, store, evaluate, plan over the busy seconds; median and 99th percentile, ms CPU a second.

    `rules_ms` is the part of the shipped rules: the mean, and the greatest.
    """
    config = Config()
    store = Store()
    rules: list[float] = []

    class Timed(Evaluator):
        def evaluation(self, now: float, *, news: bool = False) -> Sliced[list[Transition]]:
            begun = time.process_time_ns()
            transitions = yield from super().evaluation(now, news=news)
            rules.append((time.process_time_ns() - begun) / 1e6)
            return transitions

    pipeline = Pipeline(config, store, Timed(rule_groups(config), store))
    parser, switches, ledger = Parser(), Switches(), Ledger()

    def turn(record: dict[str, Any]) -> Observation:
        obs = observation_of(record, parser)
        pipeline.turn(obs, ledger, switches)
        return obs

    spent = [milliseconds(turn, record) for record in records]
    return {
        "turn_ms": statistics.median(spent),
        "turn_p99_ms": sorted(spent)[int(len(spent) * 0.99)],
        "rules_ms": statistics.mean(rules),
        "rules_greatest_ms": max(rules),
    }


def replaying(records: list[dict[str, Any]]) -> dict[str, float]:
    """How many times faster than real time a replay runs, by the wall clock and by its CPU time.

    The two differ only by what other work the machine has.
    """
    from dsobs.replay import Replay

    begun, cpu = time.perf_counter(), time.process_time()
    (*_, end) = Replay(Config()).run(records)
    return {
        "replay_times_real_time": end["t"] / (time.perf_counter() - begun),
        "replay_times_cpu_time": end["t"] / (time.process_time() - cpu),
    }


def main() -> None:
    """Prints one JSON object."""
    records = list(read_records(RECORDING))
    busy = records[BUSY]
    result = {**parsing([r["metrics"] for r in busy]), **turns(busy), **replaying(records)}
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
