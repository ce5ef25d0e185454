"""Compiles an expression once into closures over (store, time); each evaluation is then a few dictionary look-ups."""

import math
import operator
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, TypeAlias

import promql_parser as syntax

from dsobs.model.samples import Labels, Sample
from dsobs.promql.errors import EvaluationError, PromqlError, UnsupportedError
from dsobs.promql.histograms import bucket_quantile
from dsobs.promql.patterns import compile_pattern, expanded, literals
from dsobs.promql.ranges import KEEPS_NAME, RANGE_FUNCTIONS, Window, least, mean, most, quantile, total, variance
from dsobs.series.store import LOOKBACK_SECONDS, Series, Store, is_stale

Vector: TypeAlias = list[tuple[Labels, float]]
Value: TypeAlias = Vector | float | str
Evaluate: TypeAlias = Callable[[Store, float], Any]
"""A compiled expression: (store, seconds since the Unix epoch) → `Value`."""

_LOOKBACK = int(LOOKBACK_SECONDS * 1000)


def without_name(labels: Labels) -> Labels:
    """Without the metric's name."""
    return tuple(pair for pair in labels if pair[0] != "__name__")


def _unique(vector: Vector) -> Vector:
    if len({labels for labels, _ in vector}) < len(vector):
        raise EvaluationError("vector cannot contain metrics with the same labelset")
    return vector


class Query:
    """One compiled expression."""

    def __init__(self, expression: str, evaluate: Evaluate, names: frozenset[str], lookback: float, kind: str) -> None:
        self.expression = expression
        self.metric_names = names
        """Metrics that it reads by name."""
        self.lookback_seconds = lookback
        """How far back it reads: longest range, offset and the look-back of five minutes."""
        self.kind = kind
        """vector or scalar."""
        self._evaluate = evaluate

    def evaluate(self, store: Store, t: float) -> list[Sample] | float:
        """The result at `t`: an instant vector or a scalar. `EvaluationError` if the data allow none."""
        result = self._evaluate(store, t)
        if isinstance(result, list):
            return [Sample(labels, value) for labels, value in result]
        return float(result)


def compile(expression: str) -> Query:  # noqa: A001 - the word for it
    """Compiles; `PromqlError` for what is no PromQL, `UnsupportedError` for what is not evaluated here."""
    try:
        parsed = syntax.parse(expression)
    except ValueError as error:
        raise PromqlError(str(error), _position(expression, str(error))) from error
    compiler = _Compiler()
    kind = compiler.kind(parsed)
    if kind == "matrix" and isinstance(parsed, syntax.MatrixSelector):
        raise PromqlError("the expression gives a range vector; a function such as rate() makes it an instant vector")
    if kind == "string":
        raise PromqlError("the expression gives a string")
    try:
        evaluate = compiler.expression(parsed)
    except UnsupportedError as error:
        error.position = _position(expression, str(error))
        raise
    return Query(expression, evaluate, frozenset(compiler.names), compiler.lookback, kind)


def _position(expression: str, message: str) -> int | None:
    """Where the words stand that a message speaks of; None where that is not clear."""
    if "unexpected end" in message:
        return len(expression)
    for found in re.finditer(r"'([^']+)'|([a-z_]+\()\)|(@)|(subqueries)|`(or)`", message):
        word = found[1] or found[2] or found[3] or found[5] or "["
        before, after = (r"\b" if word[0].isalnum() else ""), (r"\b" if word[-1].isalnum() else "")
        places = [place.start() for place in re.finditer(before + re.escape(word) + after, expression)]
        if len(places) == 1:
            return places[0]
    return None


def _fits(matchers: Iterable[Any]) -> Callable[[Labels], bool] | None:
    """Whether labels fit all matchers; None if there are none."""
    tests: list[tuple[str, Callable[[str], bool]]] = []
    for matcher in matchers:
        op, value = str(matcher.op).rpartition(".")[2], matcher.value
        if op in ("Re", "NotRe"):
            pattern = compile_pattern(value)
        if op == "Equal":
            tests.append((matcher.name, lambda v, w=value: v == w))  # type: ignore[misc]
        elif op == "NotEqual":
            tests.append((matcher.name, lambda v, w=value: v != w))  # type: ignore[misc]
        elif op == "Re":
            tests.append((matcher.name, lambda v, p=pattern: p.fullmatch(v) is not None))  # type: ignore[misc]
        elif op == "NotRe":
            tests.append((matcher.name, lambda v, p=pattern: p.fullmatch(v) is None))  # type: ignore[misc]
        else:
            raise UnsupportedError(f"matcher {op}")
    if not tests:
        return None

    def fits(labels: Labels) -> bool:
        found = dict(labels)
        return all(test(found.get(name, "")) for name, test in tests)

    return fits


def _names(matchers: Iterable[Any]) -> tuple[str, ...]:
    """The metrics that matchers of `__name__` name: the store keeps nothing that a query does not name."""
    for matcher in matchers:
        if matcher.name == "__name__":
            op = str(matcher.op).rpartition(".")[2]
            names = (matcher.value,) if op == "Equal" else literals(matcher.value) if op == "Re" else ()
            if names:
                return names
    raise UnsupportedError("a selector that does not name its metrics")


class _Selector:
    """Series by name and matchers; what was selected is remembered until series come or go."""

    def __init__(self, node: Any) -> None:
        if node.matchers.or_matchers:
            raise UnsupportedError("`or` between matchers")
        if node.at is not None:
            raise UnsupportedError("the @ modifier")
        matchers = list(node.matchers.matchers)
        self.names = (node.name,) if node.name is not None else _names(matchers)
        self._fits = _fits(matchers)
        self.offset = node.offset.total_seconds() if node.offset is not None else 0.0
        self._known: tuple[Store, int] | None = None
        self._found: list[tuple[Series, Labels]] = []

    def series(self, store: Store) -> list[tuple[Series, Labels]]:
        """(series, its labels without the name)."""
        if self._known is None or self._known[0] is not store or self._known[1] != store.generation:
            self._found = [
                (series, without_name(series.labels))
                for name in self.names
                for series in store.series(name, self._fits)
            ]
            self._known = (store, store.generation)
        return self._found

    def instant(self, store: Store, t: float) -> Vector:
        """The present samples at `t`."""
        at = round((t - self.offset) * 1000)
        out = []
        for series, _ in self.series(store):
            found = series.at(at)
            if found is not None and found[0] > at - _LOOKBACK and not is_stale(found[1]):
                out.append((series.labels, found[1]))
        return out


def _scalar_of(value: Any) -> float:
    if isinstance(value, list):
        return value[0][1] if len(value) == 1 else math.nan
    return float(value)


def _divide(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _modulo(a: float, b: float) -> float:
    return math.fmod(a, b) if b and math.isfinite(a) and not math.isnan(b) else math.nan


def _power(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except OverflowError:
        return math.copysign(math.inf, a if b % 2 else 1.0)
    except ValueError:
        return math.inf if a == 0 else math.nan


_COMPARISON: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_SETS = frozenset({"and", "or", "unless"})


_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "%": _modulo,
    "^": _power,
    "atan2": math.atan2,
}


def _round(value: float, nearest: float = 1.0) -> float:
    if not math.isfinite(value):
        return value
    if nearest == 0:
        return math.nan
    inverse = 1.0 / nearest
    shifted = value * inverse + 0.5
    return math.floor(shifted) / inverse if math.isfinite(shifted) else shifted / inverse


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


Function: TypeAlias = Callable[[Store, float, list[Any]], Any]
"""A function of the language: (store, time, values of its arguments) → `Value`."""


def _plain(function: Callable[..., Value]) -> Function:
    """One that needs nothing but its arguments."""
    return lambda _store, _t, arguments: function(*arguments)


def _each(change: Callable[..., float]) -> Function:
    """A function of each value of a vector and of scalars; the result has no name."""
    return _plain(
        lambda vector, *scalars: _unique([(without_name(labels), change(value, *scalars)) for labels, value in vector])
    )


def _whole(change: Callable[[float], float]) -> Callable[[float], float]:
    """NaN and infinities as they are."""
    return lambda value: float(change(value)) if math.isfinite(value) else value


def _clamp(vector: Vector, at_least: float, at_most: float) -> Vector:
    if at_least > at_most:
        return []
    return _unique([(without_name(labels), _bounded(value, at_least, at_most)) for labels, value in vector])


def _bounded(value: float, at_least: float, at_most: float) -> float:
    if math.isnan(value) or math.isnan(at_least) or math.isnan(at_most):
        return math.nan
    return max(at_least, min(at_most, value))


def _histogram_quantile(q: float, vector: Vector) -> Vector:
    grouped: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in vector:
        bound = dict(labels).get("le")
        if bound is None:
            continue
        try:
            upper = float(bound)
        except ValueError:
            continue
        key = tuple(pair for pair in labels if pair[0] not in ("__name__", "le"))
        grouped.setdefault(key, []).append((upper, value))
    return [(key, bucket_quantile(q, buckets)) for key, buckets in grouped.items()]


def _label_replace(vector: Vector, target: str, replacement: str, source: str, pattern: str) -> Vector:
    compiled = compile_pattern(pattern)
    out = []
    for labels, value in vector:
        found = dict(labels)
        match = compiled.fullmatch(found.get(source, ""))
        if match is not None:
            found[target] = expanded(replacement, match)
        out.append((tuple(sorted((k, v) for k, v in found.items() if v)), value))
    return _unique(out)


def _ranked(vector: Vector, sign: float) -> Vector:
    """By value, NaN last; by falling value with a negative sign."""
    return sorted(vector, key=lambda pair: (math.isnan(pair[1]), sign * pair[1]))


FUNCTIONS: dict[str, Function] = {
    "abs": _each(abs),
    "ceil": _each(_whole(math.ceil)),
    "clamp": _plain(_clamp),
    "clamp_max": _each(lambda value, at_most: _bounded(value, -math.inf, at_most)),
    "clamp_min": _each(lambda value, at_least: _bounded(value, at_least, math.inf)),
    "exp": _each(_exp),
    "floor": _each(_whole(math.floor)),
    "histogram_quantile": _plain(_histogram_quantile),
    "label_replace": _plain(_label_replace),
    "ln": _each(lambda v: math.log(v) if v > 0 else (-math.inf if v == 0 else math.nan)),
    "pi": _plain(lambda: math.pi),
    "round": _each(_round),
    "scalar": _plain(_scalar_of),
    "sgn": _each(lambda v: v if math.isnan(v) or v == 0 else math.copysign(1.0, v)),
    "sort": _plain(lambda vector: _ranked(vector, 1.0)),
    "sort_desc": _plain(lambda vector: _ranked(vector, -1.0)),
    "sqrt": _each(lambda v: math.sqrt(v) if v >= 0 else math.nan),
    "time": lambda _store, t, _arguments: t,
    "vector": _plain(lambda value: [((), float(value))]),
}
"""The functions of instant vectors and scalars; those of ranges are in `ranges`. A new one is one entry."""
_AGGREGATE: dict[str, Callable[[list[float]], float]] = {
    "sum": total,
    "avg": mean,
    "min": least,
    "max": most,
    "count": lambda values: float(len(values)),
    "group": lambda _: 1.0,
    "stddev": lambda values: math.sqrt(variance(values)),
    "stdvar": variance,
}


class _Compiler:
    """Walks one syntax tree."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.lookback = 0.0

    def kind(self, node: Any) -> str:
        """The type of an expression's result."""
        match node:
            case syntax.NumberLiteral():
                return "scalar"
            case syntax.StringLiteral():
                return "string"
            case syntax.MatrixSelector() | syntax.SubqueryExpr():
                return "matrix"
            case syntax.ParenExpr() | syntax.UnaryExpr():
                return self.kind(node.expr)
            case syntax.BinaryExpr():
                scalars = self.kind(node.lhs) == "scalar" and self.kind(node.rhs) == "scalar"
                return "scalar" if scalars else "vector"
            case syntax.Call():
                return str(node.func.return_type).rpartition(".")[2].lower()
            case _:
                return "vector"

    def expression(self, node: Any) -> Evaluate:
        """Compiles one node."""
        match node:
            case syntax.NumberLiteral() | syntax.StringLiteral():
                constant = node.val
                return lambda _s, _t: constant
            case syntax.ParenExpr():
                return self.expression(node.expr)
            case syntax.UnaryExpr():
                return self._negative(node)
            case syntax.VectorSelector():
                selector = self._selector(node)
                self.lookback = max(self.lookback, LOOKBACK_SECONDS + max(selector.offset, 0.0))
                return selector.instant
            case syntax.MatrixSelector():
                raise UnsupportedError("a range vector outside of a function")
            case syntax.SubqueryExpr():
                raise UnsupportedError("subqueries")
            case syntax.Call():
                return self._call(node)
            case syntax.AggregateExpr():
                return self._aggregate(node)
            case syntax.BinaryExpr():
                return self._binary(node)
            case _:
                raise UnsupportedError(type(node).__name__)

    def _selector(self, node: Any) -> _Selector:
        selector = _Selector(node)
        self.names.update(selector.names)
        return selector

    def _negative(self, node: Any) -> Evaluate:
        inner = self.expression(node.expr)

        def evaluate(store: Store, t: float) -> Any:
            value = inner(store, t)
            if isinstance(value, list):
                return _unique([(without_name(labels), -v) for labels, v in value])
            return -value

        return evaluate

    def _call(self, node: Any) -> Evaluate:
        name = node.func.name
        arguments = list(node.args)
        if name in RANGE_FUNCTIONS:
            return self._range_call(name, arguments)
        if name in ("absent", "absent_over_time"):
            return self._absent(name, arguments[0])
        function = FUNCTIONS.get(name)
        if function is None:
            raise UnsupportedError(f"function {name}()")
        if name == "label_replace":
            for argument in arguments[1:]:
                if not isinstance(argument, syntax.StringLiteral):
                    raise PromqlError("label_replace() takes strings")
            compile_pattern(arguments[4].val)
            if not arguments[1].val:
                raise PromqlError("label_replace() needs the name of a label to set")
        compiled = [self.expression(argument) for argument in arguments]
        return lambda store, t: function(store, t, [argument(store, t) for argument in compiled])

    def _matrix(self, node: Any) -> tuple[_Selector, float]:
        while isinstance(node, syntax.ParenExpr):
            node = node.expr
        if isinstance(node, syntax.SubqueryExpr):
            raise UnsupportedError("subqueries")
        if not isinstance(node, syntax.MatrixSelector):
            raise PromqlError("a range vector such as x[5m] is expected")
        selector = self._selector(node.vector_selector)
        seconds = node.range.total_seconds()
        self.lookback = max(self.lookback, seconds + max(selector.offset, 0.0))
        return selector, seconds

    def _range_call(self, name: str, arguments: list[Any]) -> Evaluate:
        function = RANGE_FUNCTIONS[name]
        matrix = next(i for i, a in enumerate(arguments) if self.kind(a) == "matrix")
        selector, seconds = self._matrix(arguments[matrix])
        parameters = [self.expression(a) for i, a in enumerate(arguments) if i != matrix]
        keeps = name in KEEPS_NAME

        def evaluate(store: Store, t: float) -> Vector:
            end = round((t - selector.offset) * 1000)
            start = end - round(seconds * 1000)
            given = [float(parameter(store, t)) for parameter in parameters]
            out = []
            for series, bare in selector.series(store):
                times, values = series.window(start, end)
                if len(values):
                    spacing = store.coarse_step if series.thinned_after(start) else 0.0
                    value = function(Window(times, values, start, end, spacing), given)
                    if value is not None:
                        out.append((series.labels if keeps else bare, value))
            return out if keeps else _unique(out)

        return evaluate

    def _absent(self, name: str, argument: Any) -> Evaluate:
        node = argument
        while isinstance(node, syntax.ParenExpr):
            node = node.expr
        if name == "absent_over_time":
            selector, seconds = self._matrix(node)
            labels = self._equalities(node.vector_selector)

            def over_time(store: Store, t: float) -> Vector:
                end = round((t - selector.offset) * 1000)
                start = end - round(seconds * 1000)
                present = any(len(series.window(start, end)[0]) for series, _ in selector.series(store))
                return [] if present else [(labels, 1.0)]

            return over_time
        inner = self.expression(node)
        absent = self._equalities(node) if isinstance(node, syntax.VectorSelector) else ()
        return lambda store, t: [] if inner(store, t) else [(absent, 1.0)]

    @staticmethod
    def _equalities(node: Any) -> Labels:
        """The labels of absent(): those that an equality names once."""
        found: dict[str, list[tuple[str, str]]] = {}
        for matcher in node.matchers.matchers:
            if matcher.name != "__name__":
                found.setdefault(matcher.name, []).append((str(matcher.op).rpartition(".")[2], matcher.value))
        return tuple(sorted((k, v[0][1]) for k, v in found.items() if len(v) == 1 and v[0][0] == "Equal" and v[0][1]))

    def _aggregate(self, node: Any) -> Evaluate:
        name = str(node.op)
        inner = self.expression(node.expr)
        parameter = self.expression(node.param) if node.param is not None else None
        key = _grouping(node.modifier)
        if name in _AGGREGATE:
            reduce = _AGGREGATE[name]
            return lambda store, t: [
                (labels, reduce([value for _, value in members])) for labels, members in _groups(inner(store, t), key)
            ]
        if parameter is None:
            raise PromqlError(f"{name} takes a parameter")
        if name == "quantile":
            return lambda store, t: [
                (labels, quantile(_scalar_of(parameter(store, t)), [value for _, value in members]))
                for labels, members in _groups(inner(store, t), key)
            ]
        if name in ("topk", "bottomk"):
            sign = -1.0 if name == "topk" else 1.0

            def ranked(store: Store, t: float) -> Vector:
                k = _scalar_of(parameter(store, t))
                if not -(2.0**63) <= k < 2.0**63:
                    raise EvaluationError(f"the parameter {_text(k)} of {name} is not a whole number of 64 bits")
                count = max(0, int(k))
                out: Vector = []
                for _, members in _groups(inner(store, t), key):
                    out += _ranked(members, sign)[:count]
                return out

            return ranked
        if name == "count_values":
            if not isinstance(node.param, syntax.StringLiteral) or not node.param.val:
                raise PromqlError("count_values takes the name of a label as a string")
            label = node.param.val

            def counted(store: Store, t: float) -> Vector:
                out: dict[Labels, float] = {}
                for labels, members in _groups(inner(store, t), key):
                    for _, value in members:
                        told = {**dict(labels), label: _text(value)}
                        group = tuple(sorted(told.items()))
                        out[group] = out.get(group, 0.0) + 1
                return list(out.items())

            return counted
        raise UnsupportedError(f"aggregation {name}")

    def _binary(self, node: Any) -> Evaluate:
        name = str(node.op)
        left, right = self.expression(node.lhs), self.expression(node.rhs)
        kinds = (self.kind(node.lhs), self.kind(node.rhs))
        modifier = node.modifier
        fill = getattr(modifier, "fill_values", None)
        if fill is not None and (getattr(fill, "lhs", None) is not None or getattr(fill, "rhs", None) is not None):
            raise UnsupportedError("fill modifiers")
        returns_bool = bool(modifier is not None and modifier.return_bool)
        if name in _SETS:
            return _set_operator(name, left, right, _matching(modifier))
        if name in _COMPARISON:
            comparison = _COMPARISON[name]
            keep = not returns_bool

            def apply(a: float, b: float) -> float | None:
                holds = comparison(a, b)
                return float(holds) if not keep else (a if holds else None)

            if kinds == ("scalar", "scalar"):
                if keep:
                    raise PromqlError("comparisons between scalars must use the bool modifier")
                return lambda store, t: float(comparison(left(store, t), right(store, t)))
            if kinds == ("scalar", "vector"):
                # The vector's value is kept, on whichever side it stands.
                return _with_scalar(right, left, lambda v, s: _kept(comparison(s, v), v, keep), keep)
            if kinds == ("vector", "scalar"):
                return _with_scalar(left, right, lambda v, s: _kept(comparison(v, s), v, keep), keep)
            return _vectors(left, right, apply, modifier, keeps_name=keep)
        if name not in _ARITHMETIC:
            raise UnsupportedError(f"operator {name}")
        compute = _ARITHMETIC[name]
        if kinds == ("scalar", "scalar"):
            return lambda store, t: compute(left(store, t), right(store, t))
        if kinds == ("scalar", "vector"):
            return _with_scalar(right, left, lambda v, s: compute(s, v), keeps_name=False)
        if kinds == ("vector", "scalar"):
            return _with_scalar(left, right, compute, keeps_name=False)
        return _vectors(left, right, compute, modifier, keeps_name=False)


def _kept(holds: bool, value: float, keep: bool) -> float | None:
    return (value if holds else None) if keep else float(holds)


def _text(value: float) -> str:
    """A value as Prometheus prints it (Go's 'f', -1)."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0")


def _grouping(modifier: Any) -> Callable[[Labels], Labels]:
    if modifier is None:
        return lambda _: ()
    names = frozenset(modifier.labels)
    if str(modifier.type).endswith(".By"):
        return lambda labels: tuple(pair for pair in labels if pair[0] in names)
    return lambda labels: tuple(pair for pair in labels if pair[0] not in names and pair[0] != "__name__")


def _groups(vector: Vector, key: Callable[[Labels], Labels]) -> Iterable[tuple[Labels, Vector]]:
    grouped: dict[Labels, Vector] = {}
    for labels, value in vector:
        grouped.setdefault(key(labels), []).append((labels, value))
    return grouped.items()


def _matching(modifier: Any) -> Callable[[Labels], Labels]:
    """The part of a label set that has to be equal on both sides."""
    matching = modifier.matching if modifier is not None else None
    if matching is None:
        return without_name
    names = frozenset(matching.labels)
    if str(matching.type).endswith(".Include"):
        return lambda labels: tuple(pair for pair in labels if pair[0] in names)
    return lambda labels: tuple(pair for pair in labels if pair[0] not in names and pair[0] != "__name__")


def _set_operator(name: str, left: Evaluate, right: Evaluate, key: Callable[[Labels], Labels]) -> Evaluate:
    def evaluate(store: Store, t: float) -> Vector:
        a: Vector = left(store, t)
        if name != "or" and not a:
            return []
        b: Vector = right(store, t)
        if name == "or":
            present = {key(labels) for labels, _ in a}
            return a + [pair for pair in b if key(pair[0]) not in present]
        present = {key(labels) for labels, _ in b}
        return [pair for pair in a if (key(pair[0]) in present) == (name == "and")]

    return evaluate


def _with_scalar(
    vector: Evaluate, scalar: Evaluate, apply: Callable[[float, float], float | None], keeps_name: bool
) -> Evaluate:
    def evaluate(store: Store, t: float) -> Vector:
        other = scalar(store, t)
        out = []
        for labels, value in vector(store, t):
            result = apply(value, other)
            if result is not None:
                out.append((labels if keeps_name else without_name(labels), result))
        return out if keeps_name else _unique(out)

    return evaluate


def _vectors(
    left: Evaluate, right: Evaluate, apply: Callable[[float, float], float | None], modifier: Any, *, keeps_name: bool
) -> Evaluate:
    """One-to-one, many-to-one and one-to-many operators (prometheus `VectorBinop`)."""
    key = _matching(modifier)
    matching = modifier.matching if modifier is not None else None
    on = matching is not None and str(matching.type).endswith(".Include")
    names = frozenset(matching.labels) if matching is not None else frozenset()
    cardinality = str(modifier.card).rpartition(".")[2] if modifier is not None else "OneToOne"
    included = list(modifier.group_labels or ()) if modifier is not None else []
    swapped = cardinality == "OneToMany"

    def result_labels(many: Labels, one: Labels) -> Labels:
        if cardinality == "OneToOne":
            kept = many if keeps_name else without_name(many)
            if on:
                return tuple(pair for pair in kept if pair[0] in names)
            return tuple(pair for pair in kept if pair[0] not in names)
        found = dict(many if keeps_name else without_name(many))
        other = dict(one)
        for name in included:
            if other.get(name):
                found[name] = other[name]
            else:
                found.pop(name, None)
        return tuple(sorted(found.items()))

    def evaluate(store: Store, t: float) -> Vector:
        a: Vector = left(store, t)
        if not a:
            return []
        b: Vector = right(store, t)
        many, one = (b, a) if swapped else (a, b)
        index: dict[Labels, tuple[Labels, float]] = {}
        for labels, value in one:
            group = key(labels)
            if group in index:
                raise EvaluationError(
                    "found duplicate series for the match group on the "
                    f"{'left' if swapped else 'right'} hand-side of the operation; many-to-many matching not allowed"
                )
            index[group] = (labels, value)
        out: dict[Labels, float] = {}
        matched: set[Labels] = set()
        for labels, value in many:
            group = key(labels)
            other = index.get(group)
            if other is None:
                continue
            result = apply(other[1], value) if swapped else apply(value, other[1])
            if result is None:
                continue
            told = result_labels(labels, other[0])
            if cardinality == "OneToOne":
                if group in matched:
                    raise EvaluationError(
                        "multiple matches for labels: many-to-one matching must be explicit (group_left)"
                    )
                matched.add(group)
            elif told in out:
                raise EvaluationError("multiple matches for labels: grouping labels must ensure unique matches")
            out[told] = result
        return list(out.items())

    return evaluate
