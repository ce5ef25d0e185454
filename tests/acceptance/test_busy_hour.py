"""An hour of the recording's busy seconds in virtual time, laid end to end: nothing critical, nothing repaired.

`make test` takes its first quarter, `make test-real` all of it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dsobs.config import Config
from dsobs.config.models import Mode, Remediation
from dsobs.model.alert import AlertState
from dsobs.model.observation import Observation
from dsobs.model.samples import Labels, Page, metric_name
from dsobs.pipeline import Pipeline, rule_groups
from dsobs.recorder.records import read_records
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Ledger
from dsobs.replay import observation_of
from dsobs.rules.evaluator import Evaluator
from dsobs.series.exposition import Parser
from dsobs.series.store import Store

RECORDING = Path(__file__).parents[1] / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
BUSY = slice(50, 176)
MINUTE = 60
GROWS = ("_total", "_bucket", "_count", "_sum")


def busy(minutes: int) -> Iterator[Observation]:
    """The same 126 seconds again and again; what only grows goes on growing."""
    parser = Parser()
    seconds = [observation_of(record, parser) for record in list(read_records(RECORDING))[BUSY]]
    pages = [obs.scrape.page for obs in seconds if obs.scrape is not None and obs.scrape.page is not None]
    first = {sample.labels: sample.value for sample in pages[0].samples}
    gain: dict[Labels, float] = {
        sample.labels: sample.value - first.get(sample.labels, 0.0)
        for sample in pages[-1].samples
        if metric_name(sample.labels).endswith(GROWS)
    }
    begun = seconds[0].at
    for second in range(minutes * MINUTE):
        lap, index = divmod(second, len(seconds))
        obs, page = seconds[index], pages[index]
        assert obs.scrape is not None
        samples = [sample._replace(value=sample.value + lap * gain.get(sample.labels, 0.0)) for sample in page.samples]
        at = begun + second
        scrape = replace(obs.scrape, at=at, page=Page(samples, page.types, page.helps))
        yield replace(obs, at=at, scrape=scrape)


@pytest.mark.parametrize("minutes", [15, pytest.param(60, marks=pytest.mark.real("faults"))])
def test_an_hour_of_a_busy_server_raises_nothing_critical_and_plans_nothing(minutes: int) -> None:
    config = Config(remediation=Remediation(mode=Mode.ENFORCE))
    store = Store()
    # Without a probe's word a stall is called sooner than with it.
    pipeline = Pipeline(config, store, Evaluator(rule_groups(config), store), probes="assumed", assume_restart=True)
    critical, steps = [], []
    for obs in busy(minutes):
        turn = pipeline.turn(obs, Ledger(), Switches())
        critical += [
            t for t in turn.transitions if t.alert.severity == "critical" and t.alert.state is not AlertState.RESOLVED
        ]
        steps += turn.steps
    assert critical == []
    assert steps == []
    (gaps,) = pipeline.tracker.gaps.values()
    assert gaps.worked_seconds > 0.8 * minutes * MINUTE
    assert gaps.quantile(0.999) is not None
