"""What /metrics exports, a rule in the sidecar can name: every metric of the reference."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from dsobs import promql, telemetry
from dsobs.config import Config
from dsobs.config.models import Mode, Remediation, Rules
from dsobs.model.observation import Failure, Gpu, HostView, Observation, Probe, ProbeOutcome, RuntimeView, Scrape
from dsobs.model.samples import metric_name
from dsobs.pipeline import Pipeline, rule_groups
from dsobs.recorder.records import read_records
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Ledger
from dsobs.rules.evaluator import Evaluator
from dsobs.series.exposition import Parser
from dsobs.series.store import Store
from dsobs.sidecar.shipping import Shipping
from dsobs.telemetry import REGISTRY, Own
from tests.benchmarks.gpus import card
from tests.pipeline.world import Server, World

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "tests" / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
REFERENCE = dict(
    re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs/reference/metrics.md").read_text(), flags=re.MULTILINE)
)
"""Name → type."""
OWN = {
    told.name + ("_total" if told.type == "counter" else "")
    for metric in vars(telemetry).values()
    if isinstance(metric, (Counter, Gauge, Histogram))
    for told in metric.describe()
}
SIGNALS = {name for name in REFERENCE if re.match("dsobs_(engine|gpu|container|host)_", name)}
LOGS = {name for name in REFERENCE if name.startswith("dsobs_log_")} - OWN
PROCESS = {name for name in REFERENCE if name.startswith("process_")}
ALERTS = {"ALERTS", "ALERTS_FOR_STATE"}
MORE = """vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 1
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 1
vllm:cache_config_info{engine="0",kv_cache_memory_bytes="5"} 1
"""
"""What other versions of vLLM say than the recorded one."""
HOST = HostView(1000.0, 100, 40, (("/", 5, 10),), 8, 7, 9, 1, 1.0, 1.0, 1.0)
RUNTIME = RuntimeView("process", "vllm", True, 900.0, exit_code=1, oom_killed=False, cpu_seconds=3.0, pids=(1000,))


def named(name: str) -> str:
    """What stands for the metric: a histogram's count."""
    return f"{name}_count" if REFERENCE.get(name) == "histogram" else name


def rules_on(names: Iterable[str], folder: Path) -> Config:
    """Settings with a rule on each of these."""
    file = folder / "copies.rules.yaml"
    rules = [f"{{record: 'copy:{name}', expr: '{named(name)}'}}" for name in sorted(names)]
    file.write_text(f"groups: [{{name: copies, interval: 1s, rules: [{', '.join(rules)}]}}]\n")
    return Config(rules=Rules(files=(file,)), remediation=Remediation(mode=Mode.ENFORCE))


class Turns:
    """A pipeline beside the recorded server, with all that can be read of it."""

    def __init__(self, config: Config, probes: str = "on") -> None:
        self.store = Store()
        self.pipeline = Pipeline(config, self.store, Evaluator(rule_groups(config), self.store), probes=probes)
        records = list(read_records(RECORDING))[60:]
        self._page = next(one["metrics"] for one in records if one["metrics"].startswith("# HELP")) + MORE
        self.at = 1000.0

    def turn(self, scrape: Scrape | None = None, **more: Any) -> None:
        self.at += 1.0
        scrape = scrape or Scrape(self.at, 0.01, page=Parser().parse(self._page), text=self._page, status=200)
        obs = Observation(self.at, scrape, runtime=RUNTIME, host=replace(HOST, at=self.at), **more)
        self.pipeline.turn(obs, Ledger(), Switches())

    def value(self, expression: str) -> list[float]:
        """Of a rule's expression, now."""
        found = promql.finish(promql.compile(expression).in_slices(self.store, self.at, promql.LIMITS))
        assert not isinstance(found, (int, float))
        return [sample.value for sample in found]


def exported(pipeline: Pipeline, store: Store) -> set[str]:
    """Signals of the page that a rule names; the store has each with the page's value."""
    wanted = {named(name) for name in SIGNALS}
    samples = [sample for sample in pipeline.samples() if metric_name(sample.labels) in wanted]
    for sample in samples:
        (series,) = store.series(metric_name(sample.labels), sample.labels.__eq__)
        assert series.values[-1] == sample.value, sample
    return {metric_name(sample.labels) for sample in samples}


def test_a_rule_can_select_every_signal_of_the_reference_with_the_value_of_the_page(tmp_path: Path) -> None:
    config = rules_on(SIGNALS, tmp_path)
    turns, lost = Turns(config), Gpu(1, "GPU-b", unknown="lost")
    turns.turn(gpus=(replace(card(0), xids=(31,)), lost), probes=(Probe(1000.0, 1000.5, ProbeOutcome.ANSWERED),))
    turns.turn(gpus=(card(0), lost))
    found = exported(turns.pipeline, turns.store)
    assert {name for name in found & SIGNALS if not list(turns.store.series(f"copy:{name}"))} == set()
    blind = Turns(config, probes="off")
    blind.turn()
    # As learned from a server at its limit.
    blind.pipeline._meter.capacity = 50.0
    blind.turn()
    found |= exported(blind.pipeline, blind.store)
    hung = World(config, server=Server(frozen=True))
    while not hung.ledger.entries or "verify" not in {entry.kind for entry in hung.ledger.entries}:
        hung.run(1)
        found |= exported(hung.pipeline, hung.store)
    assert {named(name) for name in SIGNALS} - found == set()


def test_a_rule_can_count_scrapes_that_failed_and_what_they_took(tmp_path: Path) -> None:
    turns = Turns(rules_on(SIGNALS, tmp_path))
    turns.turn()
    turns.turn(Scrape(1002.0, 5.0, failure=Failure.TIMEOUT, answered=False))
    assert turns.value('increase(dsobs_engine_scrape_failures_total{reason="timeout"}[1m]) > 0')
    assert turns.value("dsobs_engine_scrape_duration_seconds") == [5.0]
    assert turns.value('dsobs_engine_probes_total{outcome="answered"}') == [0.0]


def test_a_rule_can_name_the_engine_s_own_metrics_as_long_as_they_are_on_its_page(tmp_path: Path) -> None:
    turns = Turns(rules_on({"vllm:num_requests_running", "vllm:time_to_first_token_seconds_bucket"}, tmp_path))
    turns.turn()
    assert turns.value("vllm:num_requests_running") == turns.value("dsobs_engine_requests_running")
    assert len(turns.value("copy:vllm:time_to_first_token_seconds_bucket")) > 10
    turns.turn(Scrape(1002.0, 5.0, failure=Failure.REFUSED, connected=False, answered=False))
    assert turns.value("vllm:num_requests_running") == []


def test_the_process_and_what_dsobs_claims_are_not_taken_from_the_engine(tmp_path: Path) -> None:
    turns = Turns(rules_on(PROCESS, tmp_path))
    turns.turn()
    assert [name for name in PROCESS if list(turns.store.series(name))] == []


@contextmanager
def one_child(metrics: Iterable[object]) -> Iterator[None]:
    """Each of them has a series meanwhile."""
    labelled = [one for one in metrics if isinstance(one, (Counter, Gauge, Histogram)) and one._labelnames]
    for one in labelled:
        one.labels(*("test" for _ in one._labelnames))
    yield
    for one in labelled:
        one.remove(*("test" for _ in one._labelnames))


def test_a_rule_can_select_every_metric_of_dsobs_itself(tmp_path: Path) -> None:
    evaluator = Evaluator(rule_groups(rules_on(OWN | PROCESS, tmp_path)), Store())
    with one_child(vars(telemetry).values()):
        told = {metric_name(sample.labels) for sample in Own(evaluator.metric_names).samples()}
    assert {named(name) for name in OWN | PROCESS} - told == set()


def test_dsobs_reads_its_process_only_for_rules_that_name_it() -> None:
    assert {metric_name(sample.labels) for sample in Own(["dsobs_store_series"]).samples()} == {"dsobs_store_series"}


def test_a_rule_can_select_what_log_shipping_tells_once_and_only_while_it_runs(tmp_path: Path) -> None:
    evaluator = Evaluator(rule_groups(rules_on(LOGS, tmp_path)), Store())
    shipping = Shipping(tmp_path, "vllm-0")
    REGISTRY.register(shipping)
    try:
        shipping.take({"samples": [(name, {}, 1.0) for name in LOGS], "status": {}})
        own = Own(evaluator.metric_names)
        told = [sample.labels for sample in own.samples()]
        assert {metric_name(names) for names in told} & LOGS == LOGS
        assert len(told) == len(set(told))
        shipping.forget()
        assert not LOGS & {metric_name(sample.labels) for sample in own.samples()}
    finally:
        REGISTRY.unregister(shipping)


def test_a_rule_can_select_alerts(tmp_path: Path) -> None:
    turns = Turns(rules_on(ALERTS, tmp_path))
    turns.turn()
    assert len(turns.value('ALERTS{alertname="Watchdog"}')) == 1
    assert len(turns.value('ALERTS_FOR_STATE{alertname="Watchdog"}')) == 1


def test_nothing_of_the_reference_is_left_out() -> None:
    assert set(REFERENCE) == SIGNALS | OWN | LOGS | PROCESS | ALERTS
    assert len(REFERENCE) > 150
