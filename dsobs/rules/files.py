"""Rule files in Prometheus' format (https://prometheus.io/docs/prometheus/latest/configuration/recording_rules/).

A file that Prometheus loads is loaded here, or refused with the reason: never a part of it, and never one rule less.
All errors of all files are reported at once.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from dsobs import promql
from dsobs.config.checks import LONGEST_WINDOW_SECONDS
from dsobs.promql import PromqlError, Query, UnsupportedError
from dsobs.rules.go_text import TemplateError, UnsupportedTemplateError
from dsobs.rules.reader import Problem, Reader, is_null, read_text
from dsobs.rules.templates import Template

Pairs: TypeAlias = tuple[tuple[str, str], ...]
Templates: TypeAlias = tuple[tuple[str, Template], ...]


class RuleFileError(Exception):
    """Rule files that can't be used; `problems` has every error of all of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = list(problems)


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One `alert:` rule. Durations in seconds; labels include the group's."""

    name: str
    expr: str
    query: Query
    labels: Templates
    annotations: Templates
    for_seconds: float
    keep_firing_seconds: float
    line: int

    @property
    def queries(self) -> tuple[Query, ...]:
        """The expression's, and those that stand in the templates."""
        texts = [text for _, template in (*self.labels, *self.annotations) for text in template.queries]
        return self.query, *map(promql.compile, texts)

    @property
    def range_seconds(self) -> float:
        """The longest window in the expression; 0 where it only looks at present values."""
        return self.query.window_seconds

    @property
    def key(self) -> str:
        """Names the rule on disk: 32 hexadecimal characters of its name and labels, which no other alert has.

        State outlives a reload or a restart as long as these stay, as in Prometheus (`CopyState` in rules/group.go);
        its expression, its place in the files, `for` and annotations may change.
        """
        parts = [self.name, *(f"{name}\x01{template.text}" for name, template in self.labels)]
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class RecordingRule:
    """One `record:` rule; labels include the group's."""

    name: str
    expr: str
    query: Query
    labels: Pairs
    line: int

    @property
    def key(self) -> str:
        """Names the rule, as that of an alert; several expressions may feed one metric and share the key."""
        parts = ["record", self.name, *(f"{name}\x01{value}" for name, value in self.labels)]
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:32]

    @property
    def range_seconds(self) -> float:
        """The longest window in the expression; 0 where it only looks at present values."""
        return self.query.window_seconds

    @property
    def queries(self) -> tuple[Query, ...]:
        """The expression's."""
        return (self.query,)


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after the other, at one time. Durations in seconds."""

    name: str
    file: str
    rules: tuple[AlertRule | RecordingRule, ...]
    interval: float | None = None
    """None: the evaluator's default."""
    limit: int = 0
    """Most alerts or series of one rule; 0: any number."""
    query_offset: float = 0.0
    """Queries look this far back."""


_GROUP_KEYS = ("name", "interval", "query_offset", "limit", "rules", "labels")
_RULE_KEYS = ("record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations")


def load(paths: Iterable[Path | str], texts: Iterable[tuple[str, str]] = ()) -> list[Group]:
    """The groups of `texts`, (file name, text) pairs, and of these files in turn; RuleFileError with every problem."""
    groups, problems = read(paths, texts)
    if problems:
        raise RuleFileError(problems)
    return groups


def load_text(sources: Iterable[tuple[str, str]]) -> list[Group]:
    """The same for (file name, text) pairs."""
    return load((), sources)


def read(paths: Iterable[Path | str], texts: Iterable[tuple[str, str]] = ()) -> tuple[list[Group], list[Problem]]:
    """As `load`, with what is right and what is wrong side by side: a rule with a problem is in no group."""
    sources = list(texts)
    problems: list[Problem] = []
    for path in paths:
        text = read_text(path, problems)
        if text is not None:
            sources.append((str(path), text))
    groups: list[Group] = []
    seen: dict[tuple[str, ...], str] = {}
    for name, text in sources:
        reader = _File(name, seen)
        groups += reader.read(text)
        problems += reader.problems
    return groups, problems


class _File(Reader):
    """Reads one file and collects what is wrong with it."""

    def __init__(self, name: str, seen: dict[tuple[str, ...], str]) -> None:
        super().__init__(name)
        self._seen = seen

    def read(self, text: str) -> list[Group]:
        root = self._compose(text)
        if root is None:
            return []
        top = self._mapping(root, ("groups",), "a rule file")
        names: dict[str, int] = {}
        groups: list[Group] = []
        for node in self._sequence(top.get("groups"), "groups"):
            self._rule = ""
            # The name first, so that whatever is wrong with the keys is reported under it.
            self._group = _word(node, ("name",))
            fields = self._mapping(node, _GROUP_KEYS, "a group")
            name = self._text(fields.get("name"), "name")
            if not name:
                self._problem(node, "the group has no name; add `name:`")
            elif name in names:
                self._problem(
                    fields["name"], f'group name "{name}" is also used in line {names[name]}; rename one of them'
                )
            else:
                names[name] = fields["name"].start_mark.line + 1
            self._group = name
            groups.append(self._read_group(name, fields))
        return groups

    def _read_group(self, name: str, fields: dict[str, yaml.Node]) -> Group:
        interval = self._duration(fields.get("interval"), "interval")
        query_offset = self._duration(fields.get("query_offset"), "query_offset")
        limit = 0
        limit_text = self._text(fields.get("limit"), "limit")
        if limit_text:
            try:
                limit = int(limit_text)
            except ValueError:
                self._problem(fields["limit"], f"limit {limit_text!r} is no whole number; write 0 for no limit")
        labels = self._pairs(fields.get("labels"), "label", forbidden=("__name__",))
        rules = [
            rule
            for node in self._sequence(fields.get("rules"), "rules")
            if (rule := self._read_rule(node, labels)) is not None
        ]
        self._rule = ""
        return Group(name, self.name, tuple(rules), interval or None, limit, query_offset)

    def _read_rule(self, node: yaml.Node, group_labels: dict[str, yaml.Node]) -> AlertRule | RecordingRule | None:
        self._rule = ""
        before = len(self.problems)
        self._rule = _word(node, ("alert", "record"))
        self._alert = bool(_word(node, ("alert",)))
        fields = self._mapping(node, _RULE_KEYS, "a rule")
        alert = self._text(fields.get("alert"), "alert")
        record = self._text(fields.get("record"), "record")
        if alert and record:
            self._problem(node, "the rule has both `alert` and `record`; make two rules of it")
        elif not alert and not record and len(self.problems) == before:
            self._problem(node, "the rule has neither `alert` nor `record`; add one of them")
        expr_node = fields.get("expr")
        written = self._text(expr_node, "expr")
        expr = written.strip()
        query: Query | None = None
        if not expr:
            if expr_node is not None or isinstance(node, yaml.MappingNode):
                self._problem(expr_node or node, "the rule has no expression; add `expr:`")
        else:
            try:
                query = _compiled(expr)
            except PromqlError as error:
                unsupported = isinstance(error, UnsupportedError)
                place = None if error.position is None else error.position + written.index(expr)
                self._problem(expr_node, f"expr: {reason(error)}", expr, unsupported=unsupported, place=place)
        label_nodes = self._pairs(fields.get("labels"), "label", forbidden=("__name__",))
        label_nodes = {**group_labels, **label_nodes}
        if record and not alert:
            return self._recording(record, expr, query, label_nodes, fields, node, before)
        for_seconds = self._duration(fields.get("for"), "for")
        keep = self._duration(fields.get("keep_firing_for"), "keep_firing_for")
        labels = self._templates(label_nodes, "label")
        annotations = self._templates(self._pairs(fields.get("annotations"), "annotation"), "annotation")
        if query is None or len(self.problems) > before:
            return None
        self._unique(node, "alert", alert, "", *(f"{k}={t.text}" for k, t in labels))
        return AlertRule(alert, expr, query, labels, annotations, for_seconds, keep, node.start_mark.line + 1)

    def _recording(
        self,
        name: str,
        expr: str,
        query: Query | None,
        label_nodes: dict[str, yaml.Node],
        fields: dict[str, yaml.Node],
        node: yaml.Node,
        before: int,
    ) -> RecordingRule | None:
        for key in ("for", "keep_firing_for", "annotations"):
            if key in fields:
                self._problem(fields[key], f"`{key}` belongs to alerts, not to recording rules; take it out")
        if "{" in name or "}" in name:
            self._problem(fields["record"], f"invalid metric name {name!r}; labels belong under `labels`")
        if query is None or len(self.problems) > before:
            return None
        labels = tuple((key, value.value) for key, value in sorted(label_nodes.items()))
        # Several expressions may feed one metric; only the very same rule twice is a mistake.
        self._unique(node, "record", name, expr, *(f"{k}={v}" for k, v in labels))
        return RecordingRule(name, expr, query, labels, node.start_mark.line + 1)

    def _unique(self, node: yaml.Node, *identity: str) -> None:
        here = f"{self.name}:{node.start_mark.line + 1}"
        first = self._seen.setdefault(identity, here)
        if first != here:
            self._problem(node, f"the same rule (name and labels) is in {first}; remove one or give it another label")

    def _pairs(self, node: yaml.Node | None, what: str, forbidden: Sequence[str] = ()) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        if node is None:
            return found
        for key, value, merged in self._items(node, f"`{what}s`"):
            # Prometheus 3 takes any text for a name.
            if not key.value or key.value in forbidden:
                self._problem(key, f"invalid {what} name {key.value!r}; give it another one")
            elif not isinstance(value, yaml.ScalarNode):
                self._problem(value, f"{what} {key.value!r} must be plain text")
            elif not merged or key.value not in found:
                if is_null(value):
                    value.value = ""
                found[key.value] = value
        return found

    def _templates(self, nodes: dict[str, yaml.Node], what: str) -> Templates:
        templates: list[tuple[str, Template]] = []
        for key, node in sorted(nodes.items()):
            try:
                template = Template(node.value)
                for query in template.queries:
                    _compiled(query)
            except (TemplateError, PromqlError) as error:
                unsupported = isinstance(error, (UnsupportedError, UnsupportedTemplateError))
                self._problem(node, f"{what} {key!r}: template: {reason(error)}", unsupported=unsupported)
            else:
                templates.append((key, template))
        return tuple(templates)


def _compiled(expression: str) -> Query:
    """A query whose metrics are known before it runs: the store keeps nothing that no rule names."""
    query = promql.compile(expression)
    if query.unnamed:
        raise UnsupportedError("a selector that does not name its metrics in a rule")
    return query


def reason(error: Exception) -> str:
    """What is wrong with an expression or a template, and what to do."""
    if isinstance(error, UnsupportedError):
        return f"dsobs does not support {error}; write it otherwise, or leave this rule to Prometheus"
    if isinstance(error, UnsupportedTemplateError):
        return f"{error}; write it otherwise, or leave this rule to Prometheus"
    return str(error)


def _word(node: yaml.Node, keys: Sequence[str]) -> str:
    """The text under the first of these keys that is there."""
    if isinstance(node, yaml.MappingNode):
        found = {key.value: value.value for key, value in node.value if isinstance(value, yaml.ScalarNode)}
        return next((str(found[key]) for key in keys if key in found), "")
    return ""


def out_of_reach(groups: Iterable[Group]) -> list[Problem]:
    """Rules that look back further than the sidecar keeps samples: they are for Prometheus."""
    return [
        Problem(
            group.file,
            rule.line,
            group.name,
            rule.name,
            f"it looks back {rule.query.lookback_seconds / 3600:.6g} h and the sidecar keeps 6 h; leave this rule to "
            "Prometheus (`dsobs rules check --for-prometheus`)",
            rule.expr,
        )
        for group in groups
        for rule in group.rules
        if rule.query.lookback_seconds + group.query_offset > LONGEST_WINDOW_SECONDS
    ]
