"""The YAML file as text with places.

Every scalar is handed on as the text that was written, and the models make numbers, durations and switches of it: so
`off` stays a word where a word is wanted, and 010 is never eight. Only an empty value, `~` and `null` mean nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from dsobs.config.problem import ConfigError, Problem
from dsobs.config.settings import dotted

MAX_BYTES = 1024 * 1024
MAX_VALUES = 100_000
Place: TypeAlias = tuple[str | int, ...]

_NULL, _MERGE, _STR = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute


_WRONG = object()
"""In place of a value that is a problem already."""
_Loader.add_implicit_resolver(_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])


@dataclass
class Document:
    """What a file holds."""

    name: str
    """As the user gave it."""
    tree: dict[str, Any] = field(default_factory=dict)
    """Nested dictionaries, lists, texts and None."""
    lines: dict[Place, int] = field(default_factory=dict)
    """Line, from 1, of each key and each list item."""
    problems: list[tuple[int, Problem]] = field(default_factory=list)
    """(line, what is wrong) with its structure."""


def read_document(path: Path) -> Document:
    """Reads and checks the structure; ConfigError where nothing can be made of the file at all."""
    name = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _refusal(name, "there is no such file; give the path of a settings file") from None
    except IsADirectoryError:
        raise _refusal(name, "is a directory; give the path of a settings file") from None
    except OSError as error:
        raise _refusal(name, f"can't be read ({error.strerror}); make it readable for this user") from error
    if len(raw) > MAX_BYTES:
        raise _refusal(name, "is larger than 1 MiB; a settings file is a few kilobytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _refusal(f"{name}:{line}", "is not UTF-8; save it as UTF-8 text") from None
    return parse_document(text, name)


def parse_document(text: str, name: str) -> Document:
    """The same from text; ConfigError where it is no YAML."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _refusal(f"{name}:{line}", f"holds the character {chr(_code(error))!a}; delete it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        if isinstance(error, yaml.composer.ComposerError) and "single document" in (error.context or ""):
            raise _refusal(f"{name}:{line}", "holds a second document; keep one and delete this `---`") from None
        context = error.context
        if context and error.context_mark and error.context_mark.line + 1 != line:
            context += f" from line {error.context_mark.line + 1}"
        what = ", ".join(filter(None, (context, error.problem)))
        raise _refusal(f"{name}:{line}", f"is no YAML ({what}); mend the line or the one above") from None
    except RecursionError:
        raise _refusal(name, "is nested too deeply; a settings file has four levels at most") from None
    document = Document(name)
    if root is None or root.tag == _NULL:
        return document
    if not isinstance(root, yaml.MappingNode):
        raise _refusal(
            f"{name}:{root.start_mark.line + 1}",
            "holds no settings; write a section such as `target:` and below it lines of `name: value`",
        )
    reader = _Reader(document)
    try:
        document.tree = reader.mapping(root, ())
    except RecursionError:
        raise _refusal(name, "is nested too deeply; a settings file has four levels at most") from None
    return document


def _refusal(where: str, message: str) -> ConfigError:
    return ConfigError([Problem(where, "", message, in_file=True)])


def _code(error: yaml.reader.ReaderError) -> int:
    return error.character if isinstance(error.character, int) else ord(error.character)


class _Reader:
    """Turns nodes into a tree, following aliases within bounds."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: list[int] = []
        self._values = 0

    def value(self, node: yaml.Node, place: Place) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _refusal(self._document.name, f"unfolds to more than {MAX_VALUES} values; use fewer aliases")
        if id(node) in self._open:
            self._wrong(node, place, "contains itself; write the values instead of the alias")
            return _WRONG
        if node.tag not in _PLAIN_TAGS:
            self._wrong(node, place, f"has the tag {ascii(node.tag)[1:-1]}, which means nothing here; delete the tag")
            return _WRONG
        if isinstance(node, yaml.ScalarNode):
            return None if node.tag == _NULL else node.value
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, place)
            items: list[Any] = []
            for item in node.value:
                value = self.value(item, (*place, len(items)))
                if value is not _WRONG:
                    self._document.lines[*place, len(items)] = item.start_mark.line + 1
                    items.append(value)
            return items
        finally:
            self._open.pop()

    def mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        own: dict[str, int] = {}
        merged: dict[str, tuple[yaml.Node, int]] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                for name, pair in self._merged(value_node, place, line):
                    merged.setdefault(name, pair)
                continue
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in (_STR, _NULL):
                self._wrong(key_node, place, "has a name that is no plain word; write `name: value`")
                continue
            name = key_node.value
            if name in own:
                self._wrong(key_node, (*place, name), f"is set twice, first in line {own[name]}; delete one of them")
                continue
            own[name] = line
            self._put(tree, (*place, name), line, value_node)
        for name, (value_node, line) in merged.items():
            if name not in own:
                self._put(tree, (*place, name), line, value_node)
        return tree

    def _put(self, tree: dict[str, Any], place: tuple[Any, ...], line: int, node: yaml.Node) -> None:
        self._document.lines[place] = line
        value = self.value(node, place)
        if value is not _WRONG:
            tree[place[-1]] = value

    def _merged(self, node: yaml.Node, place: Place, line: int) -> Iterator[tuple[str, tuple[yaml.Node, int]]]:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _refusal(self._document.name, f"unfolds to more than {MAX_VALUES} values; use fewer aliases")
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode) or id(source) in self._open:
                self._wrong_in(line, place, "`<<` takes the alias of another section; write `<<: *NAME`")
                return
            self._open.append(id(source))
            try:
                # A section's own keys win over those it merges in itself, wherever `<<` stands in it.
                for key_node, value_node in source.value:
                    if key_node.tag != _MERGE and isinstance(key_node, yaml.ScalarNode):
                        yield key_node.value, (value_node, key_node.start_mark.line + 1)
                for key_node, value_node in source.value:
                    if key_node.tag == _MERGE:
                        yield from self._merged(value_node, place, line)
            finally:
                self._open.pop()

    def _wrong(self, node: yaml.Node, place: Place, message: str) -> None:
        self._wrong_in(node.start_mark.line + 1, place, message)

    def _wrong_in(self, line: int, place: Place, message: str) -> None:
        where = f"{self._document.name}:{line}"
        self._document.problems.append((line, Problem(where, dotted(place), message, in_file=True)))
