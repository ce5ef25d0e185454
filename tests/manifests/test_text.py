"""Edits of a document change what they name and nothing else, and can be taken back."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs.manifests import Options, inject, remove, text
from dsobs.manifests.problem import ManifestError
from dsobs.manifests.text import Document


@pytest.fixture(params=["libyaml", "python"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of PyYAML's parsers."""
    monkeypatch.setattr(text, "_Loader", yaml.CSafeLoader if request.param == "libyaml" else yaml.SafeLoader)


EDITS: list[tuple[str, Callable[[Document], None], str]] = [
    ("a: 1  # one\n# two\n", lambda d: d.put(("b",), 2), "a: 1  # one\nb: 2\n# two\n"),
    ("a: 1", lambda d: d.put(("b",), 2), "a: 1\nb: 2"),
    ("a: |\n  x\n\n  y\n\n\n# c\n", lambda d: d.put(("b",), 2), "a: |\n  x\n\n  y\nb: 2\n\n\n# c\n"),
    ("a: |+\n  x\n\n# c\n", lambda d: d.put(("b",), 2), "a: |+\n  x\n\nb: 2\n# c\n"),
    ("a:\n", lambda d: d.put(("a",), [1]), "a:\n- 1\n"),
    ("a:  # none\nb: 1\n", lambda d: d.put(("a",), {"x": 1}), "a:  # none\n  x: 1\nb: 1\n"),
    ("a: []\n", lambda d: d.append(("a",), {"x": 1}), "a: [{x: 1}]\n"),
    ("a: [ ]\n", lambda d: d.append(("a",), 1), "a: [1]\n"),
    ("a: [1, 2 , ]\n", lambda d: d.append(("a",), 3), "a: [1, 2 , 3 ]\n"),
    ("a: {x: 1}  # c\n", lambda d: d.put(("a", "y"), "z"), "a: {x: 1, y: z}  # c\n"),
    (
        "a:\n    -   x: 1\n        y: 2\n",
        lambda d: d.put(("a", 0, "z"), 3),
        "a:\n    -   x: 1\n        y: 2\n        z: 3\n",
    ),
    ("a:\n- 1\n# end\nb: 2\n", lambda d: d.append(("a",), 2), "a:\n- 1\n- 2\n# end\nb: 2\n"),
    (
        "a:\r\n- 1\r\nb: 2",
        lambda d: d.append(("a",), {"x": 1, "y": [2]}),
        "a:\r\n- 1\r\n- x: 1\r\n  y:\r\n  - 2\r\nb: 2",
    ),
    ('{"a": {\n  "x": 1\n}}\n', lambda d: d.put(("a", "y"), [1]), '{"a": {\n  "x": 1,\n  "y": [\n    1\n  ]\n}}\n'),
    ('{"a": [1]}', lambda d: d.append(("a",), {"x": "é"}), '{"a": [1, {"x": "é"}]}'),
    ("a:\n- # dash - here\n  x: 1\n- x: 2\n", lambda d: d.delete(("a", ("x", "1"))), "a:\n- x: 2\n"),
    ("a:\n- x: 1\n  y: 2\n", lambda d: d.delete(("a", 0, "x")), "a:\n- y: 2\n"),
    ("a:\n- x: 1\n  y: 2\n", lambda d: d.delete(("a", 0, "y")), "a:\n- x: 1\n"),
    ("a:\n- 1\nb: 2\n", lambda d: d.delete(("a", 0)), "a: []\nb: 2\n"),
    ("a: {x: 1, y: 2, z: 3}\n", lambda d: d.delete(("a", "y")), "a: {x: 1, z: 3}\n"),
    ("a: {x: 1, y: 2}\n", lambda d: d.delete(("a", "x")), "a: {y: 2}\n"),
    ("a: 1\nb: 2\n", lambda d: d.delete(("a",)), "b: 2\n"),
    ("a: 1\nb: 2", lambda d: d.delete(("b",)), "a: 1"),
    ("é: '😀'\nb: {c: 1}\n", lambda d: d.put(("b", "d"), 2), "é: '😀'\nb: {c: 1, d: 2}\n"),
    ("a: &x {b: 1}\nc: *x\n", lambda d: d.put(("d",), 2), "a: &x {b: 1}\nc: *x\nd: 2\n"),
    ("a: b: c\n"[3:], lambda d: d.put(("b",), "two\nlines\n"), "b: |\n  two\n  lines\n"),
]


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(("before", "edit", "after"), EDITS, ids=[repr(one[0]) for one in EDITS])
def test_edit_changes_what_it_names_and_nothing_else(before: str, edit: Callable[[Document], None], after: str) -> None:
    document = Document(before)
    edit(document)
    assert document.text == after


def test_edit_through_an_alias_is_refused() -> None:
    document = Document("a: &x {b: 1}\nc: *x\n", first_line=5)
    for path in (("a", "b"), ("c", "b")):
        with pytest.raises(ManifestError, match="shared through an anchor") as refused:
            document.put(path, 2)
        assert refused.value.line in (5, 6)


# Manifests in every style that people write: nothing but style differs, so that all mean the same.

_TAILS = ["", "   # why", " # - x: {"]
_BETWEEN = ["", "\n", "# a comment\n", "\n\n"]


class _Written:
    """Writes a tree in a style that is chosen anew at each place."""

    def __init__(self, random: Random) -> None:
        self.draw = random.choice
        self.step = self.draw([2, 4])
        self.indented = self.draw([True, False])
        self.shift = self.draw([2, 4])

    def scalar(self, value: Any, *, flow: bool = False) -> str:
        if isinstance(value, str):
            styles = ['"', "'"] if value in ("", "true") or value[0] in "-$*&!{[" or value.isdigit() else ['"', "'", ""]
            if flow and any(char in value for char in ",[]{}: "):
                styles = ['"', "'"]
            style = self.draw(styles)
            if style == '"':
                return json.dumps(value)
            return f"'{value}'" if style else value
        return json.dumps(value)

    def flow(self, value: Any) -> str:
        space = self.draw(["", " "])
        if isinstance(value, dict):
            return "{" + space + ", ".join(f"{key}: {self.flow(one)}" for key, one in value.items()) + space + "}"
        if isinstance(value, list):
            return "[" + space + f",{space}".join(self.flow(one) for one in value) + space + "]"
        return self.scalar(value, flow=True)

    def block(self, value: Any, column: int) -> str:
        lines = ""
        pad = " " * column
        if isinstance(value, dict):
            for key, one in value.items():
                lines += self.comment(column)
                if isinstance(one, (dict, list)) and one and key != "matchLabels" and self.draw(range(5)):
                    deeper = column + (self.step if isinstance(one, dict) or self.indented else 0)
                    lines += f"{pad}{key}:{self.draw(_TAILS)}\n{self.block(one, deeper)}"
                else:
                    lines += f"{pad}{key}: {self.flow(one)}{self.draw(_TAILS)}\n"
            return lines
        for one in value:
            lines += self.comment(column)
            if isinstance(one, dict) and one:
                text = self.block(one, column + self.shift)
                first = next(
                    index
                    for index, line in enumerate(text.split("\n"))
                    if line.strip() and not line.lstrip().startswith("#")
                )
                body = text.split("\n")[first:]
                lines += f"{pad}-" + " " * (self.shift - 1) + body[0].lstrip() + "\n" + "\n".join(body[1:])
            else:
                lines += f"{pad}- {self.flow(one)}{self.draw(_TAILS)}\n"
        return lines

    def comment(self, column: int) -> str:
        return "".join(
            f"{' ' * column if line.startswith('#') else ''}{line}" for line in [self.draw(_BETWEEN)] if line
        )


_EXTRA: dict[str, Any] = {
    "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 3},
    "livenessProbe": {"httpGet": {"path": "/health", "port": 8000}},
    "startupProbe": {"tcpSocket": {"port": 8000}, "failureThreshold": 30},
    "env": [{"name": "A", "value": "true"}, {"name": "B", "value": "x y"}],
    "volumeMounts": [{"name": "m", "mountPath": "/models"}],
    "resources": {"limits": {"nvidia.com/gpu": "1"}},
}


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.sampled_from(sorted(_EXTRA)), unique=True),
    st.lists(st.sampled_from(["volumes", "initContainers", "annotations", "after"]), unique=True),
    st.sampled_from(["\n", "\r\n"]),
)
def test_any_style_of_a_manifest_is_kept_byte_by_byte(
    seed: int, in_engine: list[str], in_pod: list[str], newline: str
) -> None:
    random = Random(seed)
    engine = {"name": "engine", "image": "vllm/vllm-openai:v1", "args": ["--model", "m"]}
    pod: dict[str, Any] = {}
    if "initContainers" in in_pod:
        pod["initContainers"] = [{"name": "get", "image": "get"}]
    pod["containers"] = [{**engine, **{name: _EXTRA[name] for name in in_engine}}, {"name": "log", "image": "log"}]
    if "volumes" in in_pod:
        pod["volumes"] = random.choice([[], [{"name": "m", "emptyDir": {}}]])
    metadata: dict[str, Any] = {"labels": {"app": "a"}}
    if "annotations" in in_pod:
        metadata["annotations"] = random.choice([{}, {"a": "b"}])
    spec: dict[str, Any] = {"selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": metadata, "spec": pod}}
    if "after" in in_pod:
        spec["replicas"] = 1
    tree = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}
    written = _Written(random).block(tree, 0)
    if random.choice([True, False]):
        written = written.rstrip("\n")
    written = written.replace("\n", newline)
    assert yaml.safe_load(written) == tree

    once = inject(written, "m.yaml", Options("i"))
    assert once.problems == []
    assert inject(once.text, "m.yaml", Options("i")).text == once.text
    assert remove(once.text, "m.yaml").text == written
    result = yaml.safe_load(once.text)
    template = result["spec"]["template"]["spec"]
    assert [one["name"] for one in template["initContainers"]][-1] == "dsobs"
    assert template["containers"][1] == {"name": "log", "image": "log"}
    for name in ("name", "image", "args", "resources"):
        assert template["containers"][0].get(name) == pod["containers"][0].get(name)
    # Every comment is there as often as before.
    assert once.text.count("# why") == written.count("# why")
    assert once.text.count("# a comment") == written.count("# a comment")


def test_manifest_in_json_stays_json() -> None:
    tree = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "v", "image": "vllm/vllm-openai", "args": []}]},
    }
    for indent in (None, 2, 4):
        before = json.dumps(tree, indent=indent)
        once = inject(before, "m.json", Options("i")).text
        assert json.loads(once)["spec"]["initContainers"][0]["name"] == "dsobs"
        assert remove(once, "m.json").text == before


def test_byte_order_mark_stays_where_it_is() -> None:
    before = "\ufeff" + "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n"
    before += "  - name: v\n    image: vllm/vllm-openai\n    args: [--model=m]\n"
    once = inject(before, "m.yaml", Options("i"))
    assert once.problems == []
    assert once.text.startswith("\ufeffapiVersion")
    assert inject(once.text, "m.yaml", Options("i")).text == once.text
    assert remove(once.text, "m.yaml").text == before
    assert "m.yaml:6: Pod/p: dsobs watches" in str(once.remarks[0])
