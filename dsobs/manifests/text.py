"""One YAML document as text, edited in place.

PyYAML composes the document into nodes, whose marks say where each stands; an edit replaces or inserts characters there
and nothing else, in the style that stands around it (block or flow, JSON, indentation, line ends). Round-trip emitters
write the whole document anew and so change its indentation, spaces and line breaks; here they can't change.

What is inserted goes behind the last entry of its collection, as whole lines where that is in block style, so that
taking it out again gives the very text of before.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from dsobs.manifests.nodes import (
    Entry,
    Path,
    child,
    content_end,
    data,
    ends,
    entries,
    in_flow,
    is_empty,
    is_null,
    words,
)
from dsobs.manifests.problem import ManifestError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Both give the same marks; libyaml is ten times as fast."""


class Document:
    """A document that is edited. Paths lead from its root; ManifestError where one can't be edited as it is written."""

    def __init__(self, text: str, first_line: int = 1) -> None:
        """`first_line`: what its first line counts as in the file. yaml.YAMLError for what is no YAML, or nothing."""
        self.first_line = first_line
        self._set(text)
        self._given = self.root

    def _set(self, text: str) -> None:
        self.text = text
        root = yaml.compose(text, Loader=_Loader)
        if root is None:
            raise yaml.YAMLError("there is nothing in it")
        self.root: yaml.Node = root
        self._seen: dict[int, int] | None = None

    # Reading

    def node(self, path: Path) -> yaml.Node | None:
        """The node there, through aliases and merges too; None if there is none."""
        node: yaml.Node | None = self.root
        for step in path:
            entry = child(node, step)
            node = None if entry is None else entry.value
        return node

    def get(self, path: Path) -> Any:
        """What is there as dictionaries, lists, texts, whole numbers, switches and None; None if nothing is."""
        node = self.node(path)
        return None if node is None else data(node)

    def has(self, path: Path) -> bool:
        """Whether the key or item is there, with a value or without."""
        return self.node(path) is not None

    def line(self, path: Path) -> int:
        """Line of the key or item there in the text that was given, or of the innermost that is on the way to it."""
        node, mark = self._given, int(self._given.start_mark.line)
        for step in path:
            entry = child(node, step, merged=False)
            if entry is None:
                break
            mark = int((entry.key or entry.value).start_mark.line)
            node = entry.value
        return mark + self.first_line

    def raw(self, path: Path) -> str:
        """The text of the entry there, from its key to the end of its value."""
        _, entry = self._own(path)
        return self.text[entry.start : self._end(entry)]

    # Editing

    def put(self, path: Path, value: Any) -> None:
        """Sets the key at `path`: its value is replaced if it is there; collections on the way are made."""
        parent, key = path[:-1], path[-1]
        if not isinstance(key, str):
            raise TypeError(f"{key!r} is no key")
        holder = self.node(parent)
        if holder is None or is_null(holder):
            self.put(parent, {key: value})
            return
        if not isinstance(holder, yaml.MappingNode):
            raise ManifestError("holds no names and values", self.line(parent))
        if child(holder, key) is None:
            self._append(parent, holder, {key: value})
            return
        _, entry = self._own(path)
        flow = in_flow(self.root, path)
        column = entry.start - self._line_start(entry.start)
        new = self._rendered({key: value}, column, flow=flow, like=holder)
        end = self._end(entry)
        if is_empty(entry.value) and not flow and self._newline in new:
            # What is written behind a key without a value stays there.
            new = self.text[entry.start : end] + new[new.index(self._newline) :]
        self._splice(entry.start, end, new)

    def append(self, path: Path, item: Any) -> None:
        """Puts `item` behind the last one of the list at `path`, which is made if it isn't there."""
        holder = self.node(path)
        if holder is None or is_null(holder):
            self.put(path, [item])
        elif isinstance(holder, yaml.SequenceNode):
            self._append(path, holder, [item])
        else:
            raise ManifestError("is no list", self.line(path))

    def replace_value(self, path: Path, raw: str) -> None:
        """Puts the text `raw` in place of the value of the key there."""
        _, entry = self._own(path)
        self._splice(int(entry.value.start_mark.index), content_end(self.text, entry.value), raw)

    def raw_value(self, path: Path) -> str:
        """The text of the value alone."""
        _, entry = self._own(path)
        return self.text[int(entry.value.start_mark.index) : content_end(self.text, entry.value)]

    def restore(self, path: Path, raw: str, column: int) -> None:
        """Puts the text of an entry back that stood at `column` (`raw` and `column_of` gave them)."""
        holder, entry = self._own(path)
        now = entry.start - self._line_start(entry.start)
        if in_flow(self.root, path) and not self._can_stand_in_flow(raw):
            composed: Any = yaml.compose(" " * column + raw, Loader=_Loader)
            value = data(composed.value[0][1])
            raw = self._rendered({str(path[-1]): value}, now, flow=True, like=holder)
        elif now != column:
            raw = _moved(raw, now - column)
        self._splice(entry.start, self._end(entry), raw.replace("\r\n", "\n").replace("\n", self._newline))

    def _can_stand_in_flow(self, raw: str) -> bool:
        """Whether the text of an entry means the same between braces, in JSON where the document is that."""
        if self.text.lstrip().startswith("{") and not raw.startswith('"'):
            return False
        try:
            return bool(data(yaml.compose(f"{{{raw}\n}}", Loader=_Loader)) == data(yaml.compose(raw, Loader=_Loader)))
        except yaml.YAMLError:
            return False

    def column_of(self, path: Path) -> int:
        """Column of the entry there."""
        _, entry = self._own(path)
        return entry.start - self._line_start(entry.start)

    def delete(self, path: Path) -> None:
        """Takes the key or item out, with its lines. A collection that it leaves empty stays, as `{}` or `[]`."""
        holder, entry = self._own(path)
        written = list(entries(holder))
        place = next(index for index, one in enumerate(written) if one.value is entry.value)
        if len(written) == 1:
            self._empty(path[:-1], holder)
        elif holder.flow_style:
            if place:
                self._splice(ends(self.text, holder)[place - 1], self._end(entry), "")
            else:
                self._splice(entry.start, written[1].start, "")
        else:
            start = entry.start if entry.key else self._dash(holder, entry)
            before = self.text[self._line_start(start) : start]
            if before.strip() and place == 0:
                # The first key of an item stands beside its dash, where the next one goes then.
                self._splice(start, written[1].start, "")
                return
            end = self._line_end(self._end(entry))
            line_start = self._line_start(start)
            if line_start:
                self._splice(self._before_newline(line_start), end, "")
            else:
                self._splice(0, min(end + len(self._newline), len(self.text)), "")

    def _empty(self, path: Path, holder: Any) -> None:
        """Leaves `{}` or `[]` of the collection at `path`."""
        start, end = int(holder.start_mark.index), content_end(self.text, holder)
        new = "{}" if isinstance(holder, yaml.MappingNode) else "[]"
        key = self._own(path)[1].key if path else None
        if key is not None and not holder.flow_style:
            start = self.text.index(":", int(key.end_mark.index)) + 1
            new = f" {new}"
        self._splice(start, end, new)

    # Places

    def _own(self, path: Path) -> tuple[Any, Entry]:
        """The collection and the entry at `path`, if an edit of it changes this place and no other."""
        holder: Any = self.root
        node: Any = self.root
        entry: Entry | None = None
        for step in path:
            holder, entry = node, child(node, step, merged=False)
            if entry is None:
                raise ManifestError(f"{words(path)} comes from a merge (`<<`); write it out there", self.line(path))
            node = entry.value
            self._refuse_alias(node, holder, path)
        if entry is None:
            raise ManifestError("the document as a whole can't be edited", self.first_line)
        return holder, entry

    def _refuse_alias(self, node: yaml.Node, holder: yaml.Node, path: Path) -> None:
        inside = holder.start_mark.index <= node.start_mark.index and node.end_mark.index <= holder.end_mark.index
        if not inside or self._references(node) > 1:
            raise ManifestError(
                f"{words(path)} is shared through an anchor (`&`) and an alias (`*`), so that a change would show in "
                "another place too; write it out in both",
                self.line(path),
            )

    def _references(self, node: yaml.Node) -> int:
        if self._seen is None:
            self._seen = {}
            waiting = [self.root]
            while waiting:
                one = waiting.pop()
                count = self._seen[id(one)] = self._seen.get(id(one), 0) + 1
                if count == 1:
                    for entry in entries(one):
                        waiting += [entry.value, entry.key] if entry.key is not None else [entry.value]
        return self._seen.get(id(node), 1)

    def _end(self, entry: Entry) -> int:
        """Index behind the entry; one without a value reaches to the end of its line in block style."""
        end = content_end(self.text, entry.value)
        if entry.key is not None and is_empty(entry.value):
            line = self.text[end : self._line_end(end)].rstrip()
            if not line or line.lstrip().startswith("#"):
                return end + len(line)
        return end

    def _line_start(self, index: int) -> int:
        return self.text.rfind("\n", 0, index) + 1

    def _line_end(self, index: int) -> int:
        """Index of the line end behind `index`, or of the text's end."""
        found = self.text.find("\n", index)
        return len(self.text) if found < 0 else self._before_newline(found + 1)

    def _before_newline(self, index: int) -> int:
        """Index of the line end that stands right before `index`."""
        return index - (2 if self.text[max(0, index - 2) : index] == "\r\n" else 1)

    def _dash(self, holder: yaml.Node, entry: Entry) -> int:
        """Index of the dash before an item of a block list."""
        column = self._dash_column(holder)
        place = entry.start
        while True:
            start = self._line_start(place)
            if re.match(rf"[ -]{{{column}}}-", self.text[start:]) and start + column < entry.start:
                return start + column
            place = start - 1

    def _dash_column(self, holder: yaml.Node) -> int:
        start = int(holder.start_mark.index)
        anchor = re.match(r"[&!]\S+(?:[ \t]*(?:#[^\n]*)?\r?\n)*[ \t]*", self.text[start:])
        if anchor:
            start += anchor.end()
        return start - self._line_start(start)

    # Writing

    @property
    def _newline(self) -> str:
        return "\r\n" if "\r\n" in self.text else "\n"

    def _splice(self, start: int, end: int, new: str) -> None:
        self._set(self.text[:start] + new + self.text[end:])

    def _append(self, path: Path, holder: Any, addition: Any) -> None:
        """Adds the one entry of `addition`, a dictionary or a list, to the collection there."""
        if path:
            self._own(path)
        written = list(entries(holder))
        if holder.flow_style:
            self._append_in_flow(holder, written, addition)
            return
        column = (
            written[0].start - self._line_start(written[0].start)
            if isinstance(holder, yaml.MappingNode)
            else self._dash_column(holder)
        )
        last = written[-1]
        end = self._end(last) if is_empty(last.value) else ends(self.text, holder)[-1]
        end = self._line_end(end)
        new = self._rendered(addition, column, flow=False, like=holder)
        self._splice(end, end, f"{self._newline}{' ' * column}{new}")

    def _append_in_flow(self, holder: yaml.Node, written: Sequence[Entry], addition: Any) -> None:
        closing = int(holder.end_mark.index) - 1
        if not written:
            opening = self.text.rfind("{["["}]".index(self.text[closing])], 0, closing)
            new = self._rendered(addition, 0, flow=True, like=holder)
            self._splice(opening + 1, closing, new)
            return
        end = ends(self.text, holder)[-1]
        comma = "" if self.text[end:closing].lstrip().startswith(",") else ","
        if comma == "":
            end = self.text.index(",", end) + 1
        last = written[-1].start
        own_line = "\n" in self.text[end:closing] and not self.text[self._line_start(last) : last].strip()
        column = last - self._line_start(last) if own_line else 0
        new = self._rendered(addition, column, flow=True, like=holder, lines=own_line)
        self._splice(end, end, comma + (f"{self._newline}{' ' * column}" if own_line else " ") + new)

    def _rendered(self, addition: Any, column: int, *, flow: bool, like: Any, lines: bool | None = None) -> str:
        """The text of the one entry of `addition`; its first line has no indentation, the others are at `column`."""
        if not flow:
            text = yaml.dump(addition, Dumper=self._dumper(), sort_keys=False, allow_unicode=True, width=2**30)
            first, *rest = text.rstrip("\n").split("\n")
            return self._newline.join([first, *(" " * column + line if line else "" for line in rest)])
        key, value = next(iter(addition.items())) if isinstance(addition, dict) else (None, addition[0])
        quoted = self.text.lstrip().startswith("{") or any(
            self.text[entry.start] == '"' for entry in entries(like) if entry.key is not None
        )
        if quoted:
            head = "" if key is None else f"{json.dumps(key)}: "
            if lines is None:
                lines = "\n" in self.text[int(like.start_mark.index) : int(like.end_mark.index)]
            if lines:
                body = json.dumps(value, indent=self._json_step(), ensure_ascii=False)
                return head + f"{self._newline}{' ' * column}".join(body.split("\n"))
            return head + json.dumps(value, ensure_ascii=False)
        text = yaml.dump(value, Dumper=_Flow, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**30)
        return ("" if key is None else f"{key}: ") + text.removesuffix("...\n").rstrip("\n")

    def _json_step(self) -> int:
        found = re.search(r"\{\r?\n( +)\"", self.text)
        return len(found[1]) if found else 2

    def _dumper(self) -> type[yaml.SafeDumper]:
        """Lists below a key are indented where the document's are."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, yaml.MappingNode) and not node.flow_style:
                for key, value in node.value:
                    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
                        mark = key.start_mark.column
                        return _Indented if self._dash_column(value) > mark else _Block
                    waiting.append(value)
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value
        return _Block


def document_of(text: str, first_line: int) -> Document | None:
    """The document; None for one that holds nothing but comments."""
    root = yaml.compose(text, Loader=_Loader)
    return None if root is None or is_null(root) else Document(text, first_line)


def _moved(raw: str, by: int) -> str:
    first, *rest = raw.split("\n")
    if by > 0:
        return "\n".join([first, *(" " * by + line if line.strip() else line for line in rest)])
    return "\n".join([first, *(line.removeprefix(" " * -by) if line.startswith(" " * -by) else line for line in rest)])


class _Block(yaml.SafeDumper):
    """Block style, texts of several lines as they are, no aliases."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


class _Indented(_Block):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - PyYAML's own
        super().increase_indent(flow, False)


class _Flow(_Block):
    pass


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Block.add_representer(str, _text)
_Indented.add_representer(str, _text)
_Flow.add_representer(str, yaml.representer.SafeRepresenter.represent_str)
