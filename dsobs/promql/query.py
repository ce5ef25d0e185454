"""Compiles an expression once into closures over (store, time); each evaluation is then a few dictionary look-ups."""

import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import promql_parser as syntax

from dsobs.model.samples import Labels, Sample
from dsobs.promql.errors import EvaluationError, PromqlError, UnsupportedError
from dsobs.promql.histograms import bucket_quantile
from dsobs.promql.ranges import KEEPS_NAME, RANGE_FUNCTIONS, mean, quantile, total, variance
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
        """vector, scalar or string."""
        self._evaluate = evaluate

    def evaluate(self, store: Store, t: float) -> list[Sample] | float:
        """The result at `t`: an instant vector or a scalar. `EvaluationError` if the data allow none."""
        result = self._evaluate(store, t)
        if isinstance(result, list):
            return [Sample(labels, value) for labels, value in result]
        if isinstance(result, str):
            raise EvaluationError("the expression gives a string")
        return float(result)


def compile(expression: str) -> Query:  # noqa: A001 - the word for it
    """Compiles; `PromqlError` for what is no PromQL, `UnsupportedError` for what is not evaluated here."""
    try:
        parsed = syntax.parse(expression)
    except ValueError as error:
        raise PromqlError(str(error)) from error
    compiler = _Compiler()
    evaluate = compiler.expression(parsed)
    kind = compiler.kind(parsed)
    if kind == "matrix":
        raise PromqlError("the expression gives a range vector; a function such as rate() makes it an instant vector")
    return Query(expression, evaluate, frozenset(compiler.names), compiler.lookback, kind)


def _fits(matchers: Iterable[Any]) -> Callable[[Labels], bool] | None:
    """Whether labels fit all matchers; None if there are none."""
    tests: list[tuple[str, Callable[[str], bool]]] = []
    for matcher in matchers:
        op, value = str(matcher.op).rpartition(".")[2], matcher.value
        if op in ("Re", "NotRe"):
            try:
                pattern = re.compile(value, re.DOTALL)
            except re.error as error:
                raise UnsupportedError(f"regular expression {value!r}: {error}") from error
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


class _Selector:
    """Series by name and matchers; what was selected is remembered until series come or go."""

    def __init__(self, node: Any) -> None:
        if node.matchers.or_matchers:
            raise UnsupportedError("`or` between matchers")
        if node.at is not None:
            raise UnsupportedError("the @ modifier")
        self.name: str | None = node.name
        matchers = list(node.matchers.matchers)
        for matcher in matchers:
            if matcher.name == "__name__" and str(matcher.op).endswith(".Equal") and self.name is None:
                self.name = matcher.value
        self._fits = _fits(matchers)
        self.offset = node.offset.total_seconds() if node.offset is not None else 0.0
        self._known: tuple[Store, int] | None = None
        self._found: list[tuple[Series, Labels]] = []

    def series(self, store: Store) -> list[tuple[Series, Labels]]:
        """(series, its labels without the name)."""
        if self._known is None or self._known[0] is not store or self._known[1] != store.generation:
            self._found = [(series, without_name(series.labels)) for series in store.series(self.name, self._fits)]
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


_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: _divide(a, b),
    "%": lambda a, b: _modulo(a, b),
    "^": lambda a, b: _power(a, b),
    "atan2": math.atan2,
}
_COMPARISON: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_SETS = frozenset({"and", "or", "unless"})


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


def _round(value: float, nearest: float) -> float:
    if not math.isfinite(value):
        return value
    inverse = 1.0 / nearest
    return math.floor(value * inverse + 0.5) / inverse


def _each(change: Callable[[float], float]) -> Callable[[Store, float, list[Any]], Vector]:
    """A function of each value of a vector."""

    def function(_store: Store, _t: float, arguments: list[Any]) -> Vector:
        return _unique([(without_name(labels), change(value)) for labels, value in arguments[0]])

    return function


def _whole(change: Callable[[float], float]) -> Callable[[float], float]:
    """NaN and infinities as they are."""
    return lambda value: float(change(value)) if math.isfinite(value) else value


def _clamp(_store: Store, _t: float, arguments: list[Any]) -> Vector:
    vector, least, most = arguments
    if least > most:
        return []
    return _unique([(without_name(labels), _bounded(value, least, most)) for labels, value in vector])


def _bounded(value: float, least: float, most: float) -> float:
    if math.isnan(value) or math.isnan(least) or math.isnan(most):
        return math.nan
    return max(least, min(most, value))


def _histogram_quantile(_store: Store, _t: float, arguments: list[Any]) -> Vector:
    q, vector = arguments
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


def _label_replace(_store: Store, _t: float, arguments: list[Any]) -> Vector:
    vector, target, replacement, source, pattern = arguments
    compiled = re.compile(pattern, re.DOTALL)
    template = re.sub(
        r"\$(?:\{(\w+)\}|(\w+))", lambda m: f"\\g<{m.group(1) or m.group(2)}>", replacement.replace("\\", "\\\\")
    )
    out = []
    for labels, value in vector:
        found = dict(labels)
        match = compiled.fullmatch(found.get(source, ""))
        if match is not None:
            try:
                found[target] = match.expand(template)
            except (re.error, IndexError):
                found[target] = ""
        out.append((tuple(sorted((k, v) for k, v in found.items() if v)), value))
    return _unique(out)


FUNCTIONS: dict[str, Callable[[Store, float, list[Any]], Any]] = {
    "abs": _each(abs),
    "ceil": _each(_whole(math.ceil)),
    "floor": _each(_whole(math.floor)),
    "exp": _each(lambda v: math.exp(v) if v < 709 else math.inf),
    "sqrt": _each(lambda v: math.sqrt(v) if v >= 0 else math.nan),
    "ln": _each(lambda v: math.log(v) if v > 0 else (-math.inf if v == 0 else math.nan)),
    "sgn": _each(lambda v: v if math.isnan(v) or v == 0 else math.copysign(1.0, v)),
    "round": lambda s, t, a: _each(lambda v: _round(v, a[1] if len(a) > 1 else 1.0))(s, t, a),
    "clamp": _clamp,
    "clamp_min": lambda s, t, a: _clamp(s, t, [a[0], a[1], math.inf]),
    "clamp_max": lambda s, t, a: _clamp(s, t, [a[0], -math.inf, a[1]]),
    "histogram_quantile": _histogram_quantile,
    "label_replace": _label_replace,
    "scalar": lambda s, t, a: _scalar_of(a[0]),
    "vector": lambda s, t, a: [((), float(a[0]))],
    "time": lambda s, t, a: t,
    "pi": lambda s, t, a: math.pi,
    "sort": lambda s, t, a: sorted(a[0], key=lambda pair: (math.isnan(pair[1]), pair[1])),
    "sort_desc": lambda s, t, a: sorted(a[0], key=lambda pair: (math.isnan(pair[1]), -pair[1])),
}
_AGGREGATE: dict[str, Callable[[list[float]], float]] = {
    "sum": total,
    "avg": mean,
    "min": lambda values: min((v for v in values if not math.isnan(v)), default=math.nan),
    "max": lambda values: max((v for v in values if not math.isnan(v)), default=math.nan),
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
        if selector.name is not None:
            self.names.add(selector.name)
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
            try:
                re.compile(arguments[4].val)
            except re.error as error:
                raise UnsupportedError(f"regular expression {arguments[4].val!r}: {error}") from error
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
                    value = function(times, values, start, end, given)
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
                count = int(k) if math.isfinite(k) and k >= 1 else 0
                out: Vector = []
                for _, members in _groups(inner(store, t), key):
                    out += sorted(members, key=lambda m: (math.isnan(m[1]), sign * m[1]))[:count]
                return out

            return ranked
        if name == "count_values":
            label = str(parameter(Store(), 0.0))

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
    if value == int(value):
        return str(int(value))
    return repr(value) if "e" not in repr(value) else f"{value:.20f}".rstrip("0")


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
