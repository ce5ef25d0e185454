"""Templates and lifecycle brought to a server: what is there already is left alone."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from dsobs.config.logs import Elasticsearch
from dsobs.logs.indices.roles import roles
from dsobs.logs.indices.templates import Resource, resources

Ask: TypeAlias = Callable[[str, str, Mapping[str, Any] | None], Awaitable[tuple[int, Any]]]
"""(method, path, body) → (status, body of the answer). Raises `InstallError` where there is no answer."""

FALLBACKS = {"match_only_text": "text", "wildcard": "keyword"}
"""For a server without the module of a type: the type of its family that every server has."""
_NO_TYPE = re.compile(r"mapper type \[(\w+)\] declared on field|No handler for type \[(\w+)\]")


class InstallError(Exception):
    """The server could not be reached, or refused; one line that says what to do.

    `unreachable`: there was no answer.
    """

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


@dataclass(frozen=True, slots=True)
class Installed:
    """What became of one resource."""

    kind: str
    name: str
    outcome: str
    """created, updated, unchanged, skipped."""
    note: str = ""


async def install(ask: Ask, settings: Elasticsearch, *, with_roles: bool = False) -> AsyncIterator[Installed]:
    """Puts what is missing or differs; gives each as it is done.

    Nothing is put for `index` where an index of that name is there: a template would not change it. InstallError.
    """
    if with_roles:
        for name, role in roles(settings).items():
            yield await _put(ask, Resource("role", name, f"_security/role/{name}", role))
    for resource in resources(settings):
        if resource.kind == "index template" and resource.body["index_patterns"] == [settings.index]:
            note = await _taken(ask, settings.index)
            if note:
                yield Installed(resource.kind, resource.name, "skipped", note)
                continue
        yield await _put(ask, resource)


async def _taken(ask: Ask, index: str) -> str:
    """Why a template for `index` would be of no use; empty if it is."""
    status, answer = await ask("GET", index, None)
    if status == 404:
        return ""
    if status != 200:
        raise _refused(status, answer, f"logs.elasticsearch.index: {index}")
    found = next(iter(answer), index)
    if found.startswith(".ds-"):
        return ""
    if found != index:
        return f"{index} is an alias of {found}; its mappings and lifecycle stay as they are"
    return f"{index} is an index, no data stream; its mappings and lifecycle stay as they are"


async def _put(ask: Ask, resource: Resource) -> Installed:
    status, answer = await ask("GET", resource.path, None)
    if status not in (200, 404):
        raise _refused(status, answer, f"{resource.kind} {resource.name}")
    there = _stored(answer) if status == 200 else None
    body: dict[str, Any] = resource.body
    notes: list[str] = []
    while True:
        if there is not None and _holds(there, body):
            return Installed(resource.kind, resource.name, "unchanged", "; ".join(notes))
        status, answer = await ask("PUT", resource.path, body)
        if status in (200, 201):
            outcome = "created" if there is None else "updated"
            return Installed(resource.kind, resource.name, outcome, "; ".join(notes))
        missing = _NO_TYPE.search(_reason(answer))
        kind = (missing[1] or missing[2]) if missing else ""
        if kind not in FALLBACKS or any(note.startswith(kind) for note in notes):
            raise _refused(status, answer, f"{resource.kind} {resource.name}")
        notes.append(f"{kind} is {FALLBACKS[kind]}: the server has no such type")
        body = _with_type(body, kind, FALLBACKS[kind])


def _with_type(value: Any, kind: str, other: str) -> Any:
    if isinstance(value, dict):
        if value.get("type") == kind:
            return {**value, "type": other, **({"ignore_above": 1024} if other == "keyword" else {})}
        return {key: _with_type(inner, kind, other) for key, inner in value.items()}
    return [_with_type(inner, kind, other) for inner in value] if isinstance(value, list) else value


def _stored(answer: Mapping[str, Any]) -> Any:
    """The body that was put, from the server's answer to GET."""
    for plural, single in (("component_templates", "component_template"), ("index_templates", "index_template")):
        if plural in answer:
            return answer[plural][0][single]
    return next(iter(answer.values()), None)


def _holds(there: Any, wanted: Any) -> bool:
    """The server has all of `wanted`, in its own spelling; what it has besides are its defaults, or not dsobs's."""
    stored = _leaves(there)
    return all(stored.get(path, "") == value for path, value in _leaves(wanted).items())


def _leaves(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for key, inner in value.items():
            # Elasticsearch writes `a: {properties: {b: …}}` for a field `a.b`, and settings as nested text.
            name = "" if key == "properties" else f"{path}.{key}" if path else str(key)
            found |= _leaves(inner, name or path)
        return found
    if isinstance(value, list):
        return {path: ",".join(str(sorted(_leaves(one).items())) for one in value)}
    if isinstance(value, dict):
        return {}
    return {path: str(value).lower() if isinstance(value, bool) else str(value)}


def _reason(answer: Any) -> str:
    error = answer.get("error", "") if isinstance(answer, dict) else ""
    if isinstance(error, dict):
        return f"{error.get('type', '')}: {error.get('reason', '')}"
    return str(error)


def _refused(status: int, answer: Any, what: str) -> InstallError:
    reason = " ".join(_reason(answer).split())[:500]
    if status == 401:
        return InstallError(
            "user and password, key or token are refused (401): check logs.elasticsearch.user and password, api_key "
            "or bearer_token"
        )
    if status == 403:
        return InstallError(
            f"{what}: the right for it is missing (403); use a user with the role dsobs_logs_setup of "
            f"`dsobs logs export roles`: {reason}"
        )
    return InstallError(f"{what}: refused with {status}: {reason}")
