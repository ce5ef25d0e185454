"""Syntax trees to closures over an `Evaluation`; each evaluation is then a few dictionary look-ups."""

from collections.abc import Callable
from typing import Any, TypeAlias

import promql_parser as tree

from dsobs.model.samples import Labels
from dsobs.promql import aggregations, operators, syntax
from dsobs.promql.errors import PromqlError, UnsupportedError
from dsobs.promql.evaluation import Evaluation
from dsobs.promql.functions import EXPERIMENTAL, FUNCTIONS, NATIVE_HISTOGRAMS, scalar_of
from dsobs.promql.matchers import equalities, fits, metric_names
from dsobs.promql.patterns import compile_pattern
from dsobs.promql.ranges import KEEPS_NAME, RANGE_FUNCTIONS
from dsobs.promql.sources import (
    LOOKBACK,
    AbsentOverTime,
    Instant,
    Matrix,
    Moment,
    RangeCall,
    Ranges,
    Selector,
    Source,
    Subquery,
)
from dsobs.promql.vectors import Vector, labels_kept, unique, without_name

Evaluate: TypeAlias = Callable[[Evaluation], Any]
"""A compiled expression: evaluation → `Value`."""

_STRING_ARGUMENTS = {"label_replace": 1, "label_join": 1}
"""From which argument on a function takes texts."""
_DEEPEST = 150
"""Nesting of nodes; a chain of operators of the same rank nests too."""


class Compiler:
    """Walks one syntax tree."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        """Metrics that selectors name."""
        self.unnamed = False
        """Whether a selector names none."""
        self.lookback = 0
        """Milliseconds that the expression reads back from the evaluation's time, the look-back included."""
        self.window = 0
        """The same without the look-back: how long there must be samples for the result to stand on all it asks for."""
        self.sources: list[Source] = []
        """What an evaluation over many steps prepares, in this order."""
        self._depth = 0
        self._back = 0
        """Milliseconds by which the subqueries around a node move its times back."""

    def kind(self, node: Any) -> str:
        """The type of an expression's result: scalar, string, vector or matrix."""
        match node:
            case tree.NumberLiteral():
                return "scalar"
            case tree.StringLiteral():
                return "string"
            case tree.MatrixSelector() | tree.SubqueryExpr():
                return "matrix"
            case tree.ParenExpr() | tree.UnaryExpr():
                return self.kind(node.expr)
            case tree.BinaryExpr():
                scalars = self.kind(node.lhs) == "scalar" and self.kind(node.rhs) == "scalar"
                return "scalar" if scalars else "vector"
            case tree.Call():
                return str(node.func.return_type).rpartition(".")[2].lower()
            case _:
                return "vector"

    def expression(self, node: Any) -> Evaluate:
        """Compiles one node that is no range vector."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UnsupportedError(f"an expression nested more than {_DEEPEST} deep")
        evaluate = self._node(node)
        self._depth -= 1
        return evaluate

    def _node(self, node: Any) -> Evaluate:
        match node:
            case tree.NumberLiteral() | tree.StringLiteral():
                constant = node.val
                return lambda _: constant
            case tree.ParenExpr():
                return self.expression(node.expr)
            case tree.UnaryExpr():
                return self._negative(node)
            case tree.VectorSelector():
                return self._instant(node).values
            case tree.MatrixSelector() | tree.SubqueryExpr():
                raise PromqlError("a range vector where an instant vector or a scalar is expected")
            case tree.Call():
                return self._call(node)
            case tree.AggregateExpr():
                return self._aggregate(node)
            case tree.BinaryExpr():
                return self._binary(node)
            case _:
                raise UnsupportedError(type(node).__name__)

    @staticmethod
    def text(node: Any) -> str:
        """Of an expression that is a string."""
        return str(_bare(node).val)

    # Selectors.

    def _reads(self, moment: Moment, milliseconds: int, lookback: int = 0) -> None:
        if not isinstance(moment.fixed, int):
            window = self._back + moment.offset + milliseconds
            self.window = max(self.window, window)
            self.lookback = max(self.lookback, window + lookback)

    def _selector(self, node: Any) -> Selector:
        if node.matchers.or_matchers:
            raise UnsupportedError("`or` between matchers")
        matchers = list(node.matchers.matchers)
        if node.name is not None and any(matcher.name == "__name__" for matcher in matchers):
            raise PromqlError(f"the metric's name is set twice in {node}")
        names = metric_names(node.name, matchers)
        self.names.update(names)
        self.unnamed = self.unnamed or not names
        moment = Moment(syntax.milliseconds(node.offset), syntax.fixed_time(node.at))
        return Selector(names, fits(matchers), moment)

    def _instant(self, node: Any) -> Instant:
        selector = self._selector(node)
        self._reads(selector.moment, 0, LOOKBACK)
        instant = Instant(selector)
        self.sources.append(instant)
        return instant

    def matrix(self, node: Any) -> Matrix:
        """Compiles a range vector; whoever uses it prepares it."""
        node = _bare(node)
        if isinstance(node, tree.MatrixSelector):
            selector = self._selector(node.vector_selector)
            milliseconds = syntax.milliseconds(node.range)
            self._positive(milliseconds)
            self._reads(selector.moment, milliseconds)
            return Ranges(selector, milliseconds)
        if isinstance(node, tree.SubqueryExpr):
            return self._subquery(node)
        raise PromqlError("a range vector such as x[5m] is expected")

    @staticmethod
    def _positive(milliseconds: int) -> None:
        if milliseconds <= 0:
            raise PromqlError("a range or step of 0; it has to be longer")

    def _subquery(self, node: Any) -> Subquery:
        moment = Moment(syntax.milliseconds(node.offset), syntax.fixed_time(node.at))
        milliseconds = syntax.milliseconds(node.range)
        step = None if node.step is None else syntax.milliseconds(node.step)
        self._positive(milliseconds)
        if step is not None:
            self._positive(step)
        outer, back = self.sources, self._back
        sources: list[Source] = []
        self.sources = sources
        self._back = back + milliseconds + moment.offset
        inner = self.expression(node.expr)
        self.sources, self._back = outer, back
        return Subquery(inner, sources, moment, milliseconds, step)

    # Functions.

    def _call(self, node: Any) -> Evaluate:
        name = node.func.name
        arguments = [_bare(argument) for argument in node.args]
        if name in EXPERIMENTAL:
            raise UnsupportedError(f"the experimental function {name}()")
        if name in NATIVE_HISTOGRAMS:
            raise UnsupportedError(f"native histograms, which {name}() is for")
        if name in RANGE_FUNCTIONS:
            return self._range_call(name, arguments)
        if name == "absent_over_time":
            return self._absent_over_time(arguments[0])
        if name == "absent":
            return self._absent(arguments[0])
        if name == "timestamp":
            return self._timestamp(arguments[0])
        function = FUNCTIONS.get(name)
        if function is None:
            raise UnsupportedError(f"function {name}()")
        self._check_texts(name, arguments)
        compiled = [self.expression(argument) for argument in arguments]
        return lambda evaluation: function(evaluation, [argument(evaluation) for argument in compiled])

    @staticmethod
    def _check_texts(name: str, arguments: list[Any]) -> None:
        if name not in _STRING_ARGUMENTS:
            return
        texts = arguments[_STRING_ARGUMENTS[name] :]
        if not all(isinstance(argument, tree.StringLiteral) for argument in texts):
            raise PromqlError(f"{name}() takes texts")
        if name == "label_replace":
            compile_pattern(texts[3].val)
        if not texts[0].val:
            raise PromqlError(f"{name}() needs the name of a label to set")
        if name == "label_join" and not all(text.val for text in texts[2:]):
            raise PromqlError("label_join() needs the names of labels to join")

    def _range_call(self, name: str, arguments: list[Any]) -> RangeCall:
        at = next(i for i, argument in enumerate(arguments) if self.kind(argument) == "matrix")
        matrix = self.matrix(arguments[at])
        parameters = [self.expression(argument) for i, argument in enumerate(arguments) if i != at]
        call = RangeCall(RANGE_FUNCTIONS[name], matrix, parameters, keeps_name=name in KEEPS_NAME)
        self.sources.append(call)
        return call

    def _absent_over_time(self, argument: Any) -> AbsentOverTime:
        labels: Labels = ()
        if isinstance(argument, tree.MatrixSelector):
            labels = equalities(argument.vector_selector.matchers.matchers)
        call = AbsentOverTime(self.matrix(argument), labels)
        self.sources.append(call)
        return call

    def _absent(self, argument: Any) -> Evaluate:
        labels = equalities(argument.matchers.matchers) if isinstance(argument, tree.VectorSelector) else ()
        inner = self.expression(argument)
        return lambda evaluation: [] if inner(evaluation) else [(labels, 1.0)]

    def _timestamp(self, argument: Any) -> Evaluate:
        if isinstance(argument, tree.VectorSelector):
            return self._instant(argument).times
        inner = self.expression(argument)
        return lambda evaluation: unique(
            [(without_name(labels), evaluation.at / 1000) for labels, _ in inner(evaluation)]
        )

    # Operators.

    def _negative(self, node: Any) -> Evaluate:
        inner = self.expression(node.expr)

        def evaluate(evaluation: Evaluation) -> Any:
            value = inner(evaluation)
            if isinstance(value, list):
                return unique([(without_name(labels), -v) for labels, v in value])
            return -value

        return evaluate

    def _aggregate(self, node: Any) -> Evaluate:
        name = str(node.op)
        if name in aggregations.EXPERIMENTAL:
            raise UnsupportedError(f"the experimental aggregation {name}()")
        inner = self.expression(_bare(node.expr))
        modifier = node.modifier
        names = frozenset(modifier.labels) if modifier is not None else frozenset()
        by = modifier is None or str(modifier.type).endswith(".By")
        grouping = labels_kept(names, kept=by)
        if name in aggregations.REDUCING:
            reduce = aggregations.REDUCING[name]
            return lambda evaluation: aggregations.reduced(inner(evaluation), grouping, reduce)
        if node.param is None:
            raise PromqlError(f"{name} takes a parameter")
        if name == "count_values":
            return self._count_values(inner, _bare(node.param), names, by=by)
        aggregate = aggregations.WITH_NUMBER.get(name)
        if aggregate is None:
            raise UnsupportedError(f"aggregation {name}()")
        parameter = self.expression(node.param)
        return lambda evaluation: aggregate(inner(evaluation), grouping, scalar_of(parameter(evaluation)))

    @staticmethod
    def _count_values(inner: Evaluate, parameter: Any, names: frozenset[str], *, by: bool) -> Evaluate:
        if not isinstance(parameter, tree.StringLiteral) or not parameter.val:
            raise PromqlError("count_values takes the name of a label as a string")
        label = parameter.val
        grouping = labels_kept(names | {label} if by else names, kept=by)
        return lambda evaluation: aggregations.counted(inner(evaluation), grouping, label)

    def _binary(self, node: Any) -> Evaluate:
        name, modifier = str(node.op), node.modifier
        kinds = (self.kind(node.lhs), self.kind(node.rhs))
        fill = getattr(modifier, "fill_values", None)
        if fill is not None and (fill.lhs is not None or fill.rhs is not None):
            raise UnsupportedError("the experimental modifier fill")
        left, right = self.expression(node.lhs), self.expression(node.rhs)
        if "scalar" in kinds and modifier is not None and modifier.matching is not None and modifier.matching.labels:
            raise PromqlError("vector matching only allowed between instant vectors")
        if name in ("and", "or", "unless"):
            if kinds != ("vector", "vector"):
                raise PromqlError(f"set operator '{name}' not allowed in binary scalar expression")
            key = operators.Matching.of(modifier).key
            return lambda evaluation: operators.of_sets(name, left(evaluation), right(evaluation), key)
        returns_bool = bool(modifier is not None and modifier.return_bool)
        comparison = operators.COMPARISONS.get(name)
        if comparison is not None:
            return self._comparison(kinds, left, right, comparison, modifier, returns_bool=returns_bool)
        compute = operators.ARITHMETIC.get(name)
        if compute is None:
            raise UnsupportedError(f"operator {name}")
        if kinds == ("scalar", "scalar"):
            return lambda evaluation: compute(left(evaluation), right(evaluation))
        return _applied(kinds, left, right, compute, compute, modifier, keeps_name=False)

    @staticmethod
    def _comparison(
        kinds: tuple[str, str],
        left: Evaluate,
        right: Evaluate,
        holds: Callable[[float, float], bool],
        modifier: Any,
        *,
        returns_bool: bool,
    ) -> Evaluate:
        if kinds == ("scalar", "scalar"):
            if not returns_bool:
                raise PromqlError("comparisons between scalars must use the bool modifier")
            return lambda evaluation: float(holds(left(evaluation), right(evaluation)))
        if returns_bool:

            def told(a: float, b: float) -> float:
                return float(holds(a, b))

            return _applied(kinds, left, right, told, told, modifier, keeps_name=False)
        # The vector's value is kept, on whichever side it stands.
        return _applied(
            kinds,
            left,
            right,
            lambda a, b: a if holds(a, b) else None,
            lambda a, b: b if holds(a, b) else None,
            modifier,
            keeps_name=True,
        )


def _applied(
    kinds: tuple[str, str],
    left: Evaluate,
    right: Evaluate,
    apply: operators.Apply,
    apply_to_right: operators.Apply,
    modifier: Any,
    *,
    keeps_name: bool,
) -> Evaluate:
    """An operator of one or two vectors; `apply_to_right` where the vector is on the right of a scalar."""
    if kinds == ("vector", "scalar"):
        return lambda e: operators.with_scalar(left(e), right(e), apply, keeps_name=keeps_name)
    if kinds == ("scalar", "vector"):
        return lambda e: operators.with_scalar(
            right(e), left(e), lambda value, scalar: apply_to_right(scalar, value), keeps_name=keeps_name
        )
    matching = operators.Matching.of(modifier)

    def evaluate(evaluation: Evaluation) -> Vector:
        return operators.of_vectors(left(evaluation), right(evaluation), apply, matching, keeps_name=keeps_name)

    return evaluate


def _bare(node: Any) -> Any:
    """Without parentheses around it."""
    while isinstance(node, tree.ParenExpr):
        node = node.expr
    return node
