"""Reads YAML by its nodes, so that every problem has its line; all problems of a file are collected."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dsobs.rules.duration import duration_seconds


@dataclass(frozen=True, slots=True)
class Problem:
    """One error of one file. `group` and `rule` are empty where it stands outside of them; `line` is 0 for the file."""

    file: str
    line: int
    group: str
    rule: str
    message: str
    expression: str = ""
    """The PromQL that it is about, where it is about one."""
    unsupported: bool = False
    """Prometheus takes it, dsobs does not evaluate it."""
    alert: bool = False
    """`rule` is an alert."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        names = f'group "{self.group}": ' if self.group else ""
        names += f'rule "{self.rule}": ' if self.rule else ""
        return f"{where}: {names}{self.message}"


class Reader:
    """One file and what is wrong with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self._group = ""
        self._rule = ""
        self._alert = False

    def _problem(
        self,
        node: yaml.Node | None,
        message: str,
        expression: str = "",
        *,
        unsupported: bool = False,
        place: int | None = None,
    ) -> None:
        """`place`: which character of the node's text it is about; its lines are the file's where it is a `|` block."""
        line = node.start_mark.line + 1 if node is not None else 0
        if place is not None and isinstance(node, yaml.ScalarNode) and node.style == "|":
            line += 1 + node.value.count("\n", 0, place)
        self.problems.append(
            Problem(self.name, line, self._group, self._rule, message, expression, unsupported, self._alert)
        )

    def _compose(self, text: str) -> yaml.Node | None:
        """The root node; None for an empty document, and for one that is no YAML."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            what = " ".join(str(part) for part in (error.context, error.problem) if part)
            self.problems.append(Problem(self.name, line, "", "", f"no valid YAML: {what}"))
            return None
        except yaml.YAMLError as error:
            self.problems.append(Problem(self.name, 0, "", "", f"no valid YAML: {' '.join(str(error).split())}"))
            return None
        except RecursionError:
            what = "it is nested too deeply; a rule file has six levels at most"
            self.problems.append(Problem(self.name, 0, "", "", what))
            return None
        return None if root is None or is_null(root) else root

    def _mapping(self, node: yaml.Node, keys: Sequence[str], what: str) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        for key, value, merged in self._items(node, what):
            if key.value not in keys:
                near = difflib.get_close_matches(str(key.value), keys, 1)
                hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(keys)}"
                self._problem(key, f"unknown key `{key.value}` in {what}; {hint}")
            elif not merged or key.value not in found:
                found[key.value] = value
        return {key: value for key, value in found.items() if not is_null(value)}

    def _items(self, node: yaml.Node, what: str) -> list[tuple[yaml.Node, yaml.Node, bool]]:
        """(key, value, came by `<<`), the node's own first."""
        return self._unfolded(node, what, (), set())

    def _unfolded(
        self, node: yaml.Node, what: str, around: tuple[yaml.Node, ...], seen: set[int]
    ) -> list[tuple[yaml.Node, yaml.Node, bool]]:
        """`around`: the mappings that it is merged into; `seen`: those that were merged, a second time adds nothing."""
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, f"{what} must be a mapping (`key: value`)")
            return []
        own: list[tuple[yaml.Node, yaml.Node, bool]] = []
        merged: list[tuple[yaml.Node, yaml.Node, bool]] = []
        lines: dict[str, int] = {}
        around = (*around, node)
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if any(source is one for one in around):
                        self._problem(key, f"{what} is merged into itself by `<<`; write its keys instead of the alias")
                    elif id(source) not in seen:
                        seen.add(id(source))
                        merged += [(k, v, True) for k, v, _ in self._unfolded(source, what, around, seen)]
            elif not isinstance(key, yaml.ScalarNode):
                self._problem(key, f"a key of {what} must be a word")
            elif key.value in lines:
                self._problem(key, f"key `{key.value}` is also in line {lines[key.value]}; remove one of them")
            else:
                lines[key.value] = key.start_mark.line + 1
                own.append((key, value, False))
        return own + merged

    def _sequence(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._problem(node, f"`{what}` must be a list (`- …`)")
            return []
        return list(node.value)

    def _text(self, node: yaml.Node | None, what: str) -> str:
        if node is None:
            return ""
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, f"`{what}` must be plain text")
            return ""
        return str(node.value)

    def _duration(self, node: yaml.Node | None, what: str) -> float:
        text = self._text(node, what)
        if node is None or not isinstance(node, yaml.ScalarNode):
            return 0.0
        try:
            return duration_seconds(text)
        except ValueError as error:
            self._problem(node, f"{what}: {error}")
            return 0.0


def is_null(node: yaml.Node) -> bool:
    """Whether it is empty, `null` or `~`."""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def read_text(path: Path | str, problems: list[Problem], *, newline: str | None = None) -> str | None:
    """The file's text; None where it can't be read, with the reason added to `problems`.

    `newline=""` leaves the lines' ends as they are.
    """
    try:
        with Path(path).open(encoding="utf-8", newline=newline) as file:
            return file.read()
    except OSError as error:
        problems.append(Problem(str(path), 0, "", "", f"can't read it: {error.strerror}"))
    except UnicodeDecodeError:
        problems.append(Problem(str(path), 0, "", "", "it is not UTF-8 text"))
    return None
