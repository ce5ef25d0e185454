"""One fault, one page: `inhibit_rules` as in an Alertmanager configuration.

Semantics of Alertmanager 0.34 (inhibit/inhibit.go): an alert is held while another one fires that matches a rule's
source side, where it itself matches the target side and both have the same values of the `equal` labels (missing is
empty).
An alert that matches both sides is not held by one that does so too. Silenced and held alerts are sources as well.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dsobs.config.document import Document, Place, parse_document, read_document
from dsobs.config.problem import ConfigError, Problem
from dsobs.config.settings import dotted
from dsobs.silences import Matcher, MatcherError, fit_no_label

SHIPPED_FILE = "alertmanager.yaml"
_KEYS = ("name", "source_matchers", "target_matchers", "equal")
_OLD_KEYS = {f"{side}_{form}": f"{side}_matchers" for side in ("source", "target") for form in ("match", "match_re")}
_ALWAYS = {"alertname": "Watchdog", "severity": "none"}
"""What an alert that always fires has, besides the server's `instance`."""


@dataclass(frozen=True, slots=True)
class InhibitRule:
    """One rule; all matchers of a side must fit."""

    sources: tuple[Matcher, ...]
    targets: tuple[Matcher, ...]
    equal: tuple[str, ...] = ()

    def holds(self, target: Mapping[str, str], source: Mapping[str, str]) -> bool:
        """Whether a firing alert with labels `source` holds one with labels `target`."""
        if not (_all(self.sources, source) and _all(self.targets, target)):
            return False
        if any(source.get(name, "") != target.get(name, "") for name in self.equal):
            return False
        return not (_all(self.sources, target) and _all(self.targets, source))


def inhibitor(
    rules: Sequence[InhibitRule], target: Mapping[str, str], firing: Iterable[Mapping[str, str]]
) -> str | None:
    """The name of the first firing alert that holds `target` back; None where it goes out."""
    mine = [rule for rule in rules if _all(rule.targets, target)]
    if not mine:
        return None
    for source in firing:
        if source != target and any(rule.holds(target, source) for rule in mine):
            return source.get("alertname", "")
    return None


def _all(matchers: Sequence[Matcher], labels: Mapping[str, str]) -> bool:
    return all(matcher.matches(labels) for matcher in matchers)


def load_inhibition(files: Iterable[Path], texts: Iterable[tuple[str, str]] = ()) -> list[InhibitRule]:
    """The `inhibit_rules` of these texts, (file name, text) pairs, and files; ConfigError with all that is wrong."""
    rules: list[InhibitRule] = []
    problems: list[Problem] = []
    for read in (
        *(partial(parse_document, text, name) for name, text in texts),
        *(partial(read_document, p) for p in files),
    ):
        _take(read, rules, problems)
    if problems:
        raise ConfigError(problems)
    return rules


def _take(read: Callable[[], Document], rules: list[InhibitRule], problems: list[Problem]) -> None:
    try:
        document = read()
    except ConfigError as error:
        problems += error.problems
        return
    problems += [problem for _, problem in document.problems]
    listed = document.tree.get("inhibit_rules") or []
    if not isinstance(listed, list):
        problems.append(_problem(document, ("inhibit_rules",), "must be a list"))
        return
    for number, raw in enumerate(listed):
        rule = _rule(document, ("inhibit_rules", number), raw, problems)
        if rule is not None:
            rules.append(rule)


def _rule(document: Document, place: Place, raw: Any, problems: list[Problem]) -> InhibitRule | None:
    if not isinstance(raw, dict):
        problems.append(_problem(document, place, "must be a mapping with source_matchers and target_matchers"))
        return None
    before = len(problems)
    for key in raw.keys() - set(_KEYS):
        advice = f"write {_OLD_KEYS[key]}" if key in _OLD_KEYS else f"there are: {', '.join(_KEYS)}"
        problems.append(_problem(document, (*place, key), f"is no key of an inhibit rule; {advice}"))
    sources = _matchers(document, (*place, "source_matchers"), raw.get("source_matchers"), problems)
    targets = _matchers(document, (*place, "target_matchers"), raw.get("target_matchers"), problems)
    equal = raw.get("equal") or []
    for side, matchers in (("source_matchers", sources), ("target_matchers", targets)):
        if matchers and _fit_everything(matchers):
            text = "fits every alert that has no such label; name the alerts, such as alertname=EngineDown"
            problems.append(_problem(document, (*place, side), f"{_text(matchers)} {text}"))
    if not isinstance(equal, list) or not all(isinstance(name, str) for name in equal):
        problems.append(_problem(document, (*place, "equal"), "must be a list of label names"))
        equal = []
    if len(problems) == before and set(equal) <= _ALWAYS.keys() | {"instance"} and _all(sources, _ALWAYS):
        name = _ALWAYS["alertname"]
        text = f"fits {name}, which always fires, so that its targets are never told; add alertname!={name}"
        problems.append(_problem(document, (*place, "source_matchers"), f"{_text(sources)} {text}"))
    return InhibitRule(sources, targets, tuple(equal)) if len(problems) == before else None


def _matchers(document: Document, place: Place, raw: Any, problems: list[Problem]) -> tuple[Matcher, ...]:
    found: list[Matcher] = []
    if not isinstance(raw, list) or not raw:
        problems.append(_problem(document, place, "must be a list with at least one matcher"))
        return ()
    for number, text in enumerate(raw):
        try:
            found.append(Matcher.parse(str(text)))
        except MatcherError as error:
            problems.append(_problem(document, (*place, number), str(error)))
    return tuple(found)


def _fit_everything(matchers: Sequence[Matcher]) -> bool:
    """By a slip: one that says what it does not mean (`severity!=critical`) was thought about."""
    return fit_no_label(matchers) and all(matcher.op in ("=", "=~") for matcher in matchers)


def _text(matchers: Iterable[Matcher]) -> str:
    return " ".join(map(str, matchers))


def _problem(document: Document, place: Place, message: str) -> Problem:
    line = next((document.lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in document.lines), 0)
    where = f"{document.name}:{line}" if line else document.name
    return Problem(where, dotted(place), message, in_file=True)
