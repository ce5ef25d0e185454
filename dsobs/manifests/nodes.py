"""The nodes that PyYAML composes of a document: what they say, and where each stands in the text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

Step: TypeAlias = "str | int | tuple[str, str]"
"""One step of a path: a key, an index, or (field, value) for the item of a list whose `field` is `value`."""
Path: TypeAlias = tuple[Step, ...]

_MERGE = "tag:yaml.org,2002:merge"
_ALIAS = re.compile(r"\*[^\s,\[\]{}]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value, or an item of a list (then `key` is None)."""

    key: yaml.Node | None
    value: yaml.Node

    @property
    def start(self) -> int:
        """Index of its first character."""
        return int((self.key or self.value).start_mark.index)


def data(node: Any) -> Any:
    """Dictionaries, lists, texts, whole numbers, switches and None. What is no plain decimal number stays text."""
    if isinstance(node, yaml.MappingNode):
        return {entry.key.value: data(entry.value) for entry in pairs(node) if isinstance(entry.key, yaml.ScalarNode)}
    if isinstance(node, yaml.SequenceNode):
        return [data(item) for item in node.value]
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool" and node.value.lower() in ("true", "false"):
        return node.value.lower() == "true"
    if kind == "int" and re.fullmatch(r"-?\d+", node.value):
        return int(node.value)
    return node.value


def twice(root: yaml.Node) -> Iterator[tuple[str, int, int]]:
    """(key, its line, line of the first of that name), from 0, of every key that a mapping has twice."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        names: dict[str, int] = {}
        for entry in entries(node):
            waiting.append(entry.value)
            if isinstance(entry.key, yaml.ScalarNode) and entry.key.tag != _MERGE:
                line = int(entry.key.start_mark.line)
                if entry.key.value in names:
                    yield entry.key.value, line, names[entry.key.value]
                names.setdefault(entry.key.value, line)


def is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def is_empty(node: yaml.Node) -> bool:
    """Whether nothing is written there."""
    return is_null(node) and node.start_mark.index == node.end_mark.index


def entries(node: Any) -> Iterator[Entry]:
    """As they are written."""
    if isinstance(node, yaml.MappingNode):
        yield from (Entry(key, value) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from (Entry(None, value) for value in node.value)


def pairs(node: yaml.MappingNode, depth: int = 0) -> Iterator[Entry]:
    """With what is merged in; its own keys come last, as they win."""
    for entry in entries(node):
        if entry.key is not None and entry.key.tag == _MERGE and depth < 20:
            sources = entry.value.value if isinstance(entry.value, yaml.SequenceNode) else [entry.value]
            for source in reversed(sources):
                if isinstance(source, yaml.MappingNode):
                    yield from pairs(source, depth + 1)
    yield from (entry for entry in entries(node) if entry.key is not None and entry.key.tag != _MERGE)


def child(node: Any, step: Step, *, merged: bool = True) -> Entry | None:
    if isinstance(node, yaml.MappingNode):
        found = [
            entry
            for entry in (pairs(node) if merged else entries(node))
            if isinstance(entry.key, yaml.ScalarNode) and entry.key.value == step
        ]
        return found[-1] if found else None
    if isinstance(node, yaml.SequenceNode):
        if isinstance(step, int):
            return Entry(None, node.value[step]) if step < len(node.value) else None
        if isinstance(step, tuple):
            for item in node.value:
                field = child(item, step[0]) if isinstance(item, yaml.MappingNode) else None
                if field is not None and isinstance(field.value, yaml.ScalarNode) and field.value.value == step[1]:
                    return Entry(None, item)
    return None


def content_end(text: str, node: Any) -> int:
    """Index behind the last character of a node's own text: PyYAML's marks of block collections and block texts reach
    to the next token, over comments and empty lines."""
    if isinstance(node, yaml.ScalarNode):
        start, end = int(node.start_mark.index), int(node.end_mark.index)
        if node.style not in ("|", ">"):
            return end
        head = text[start : text.find("\n", start)]
        body = text[start:end]
        kept = body.removesuffix("\n").removesuffix("\r") if "+" in head else body.rstrip()
        return start + len(kept)
    if node.flow_style or not node.value:
        return int(node.end_mark.index)
    return ends(text, node)[-1]


def ends(text: str, node: Any) -> list[int]:
    """Index behind each entry of a collection. An alias ends behind its name; its node stands elsewhere."""
    ends: list[int] = []
    floor = int(node.start_mark.index)
    for entry in entries(node):
        floor = int(entry.key.end_mark.index) if entry.key is not None else floor
        alias = entry.value.start_mark.index < floor and _ALIAS.search(text, floor)
        floor = alias.end() if alias else content_end(text, entry.value)
        ends.append(floor)
    return ends


def in_flow(root: yaml.Node, path: Path) -> bool:
    """Whether the entry at `path` stands in a collection in flow style."""
    node: Any = root
    for step in path[:-1]:
        if node.flow_style:
            return True
        entry = child(node, step)
        if entry is None:
            break
        node = entry.value
    return bool(getattr(node, "flow_style", False))


def words(path: Path) -> str:
    """A path for people: `spec.containers[vllm].env`."""
    text = ""
    for step in path:
        if isinstance(step, str):
            text += f".{step}" if text else step
        else:
            text += f"[{step[1] if isinstance(step, tuple) else step}]"
    return text
