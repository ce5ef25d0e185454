"""A store, and an evaluator from the text of a rule file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from dsobs.model.alert import Alert, AlertState, Transition
from dsobs.model.samples import labels
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import load_text
from dsobs.series.store import Store


@dataclass
class Bench:
    """One evaluator with its store; `say` gives the metrics of the next moment."""

    evaluator: Evaluator
    store: Store
    seen: list[Transition] = field(default_factory=list)

    def at(self, now: float, *samples: tuple[str, dict[str, str], float]) -> list[Transition]:
        """Stores the samples of `now`, evaluates, and returns what changed."""
        for name, values, value in samples:
            self.store.append(labels(name, **values), now, value)
        changed = self.evaluator.evaluate(now)
        self.seen += changed
        return changed

    def states(self) -> list[tuple[str, AlertState]]:
        """(name, state) of all alerts."""
        return [(alert.name, alert.state) for alert in self.evaluator.alerts()]

    def only(self) -> Alert:
        """The one alert there is."""
        (alert,) = self.evaluator.alerts()
        return alert


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench() -> MakeBench:
    """Makes a bench from rule file text; keywords go to the evaluator."""

    def make(text: str, **settings: Any) -> Bench:
        store = Store()
        evaluator = Evaluator(load_text([("test.yaml", text)]), store, **settings)
        for name in evaluator.metric_names:
            store.want(name)
        return Bench(evaluator, store)

    return make
