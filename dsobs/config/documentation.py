"""What the docstrings of the models say, read from its source: only the schema and the reference need them."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from dsobs.config import log_transform, logs, models, otlp, scaling


@cache
def of_section(model: str) -> str:
    """The docstring of a model, by the class's name."""
    return next(" ".join((ast.get_docstring(node) or "").split()) for node in _classes() if node.name == model)


@cache
def of_setting(model: str, attribute: str) -> str:
    """The docstring of a model's field or of one that it inherits, in one line; empty where there is none."""
    of = next(node for node in _classes() if node.name == model)
    for statement, following in pairwise(of.body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.target.id == attribute
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            return " ".join(str(following.value.value).split())
    bases = (base.id for base in of.bases if isinstance(base, ast.Name) and base.id != "Model")
    return next((found for base in bases if (found := of_setting(base, attribute))), "")


def _classes() -> Iterator[ast.ClassDef]:
    trees = (ast.parse(inspect.getsource(module)) for module in (models, logs, log_transform, otlp, scaling))
    return (node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
