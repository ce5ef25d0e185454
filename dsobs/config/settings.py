"""Every setting by its name, found by walking the models: for variables, flags, error messages and the reference."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dsobs.config.duration import format_duration
from dsobs.config.fields import Duration
from dsobs.config.models import Config
from dsobs.config.secret import Secret

Key: TypeAlias = tuple[str, ...]
"""The names from the top of the file down: ("rules", "gpu_memory", "for")."""


class Kind(StrEnum):
    """What is written for a setting, in words."""

    DURATION = "duration"
    WHOLE = "whole number"
    NUMBER = "number"
    SWITCH = "true or false"
    CHOICE = "choice"
    PATH = "path"
    SECRET = "secret"  # noqa: S105 - a word, no password
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting."""

    key: Key
    kind: Kind
    """Of one item, where `is_list`."""
    is_list: bool
    optional: bool
    """May be left without a value."""
    choices: tuple[str, ...]
    field: FieldInfo
    section: "Section"
    attribute: str
    """Name of the model's field."""

    @property
    def variable(self) -> str:
        """The environment variable that sets it: `DSOBS_TARGET__SCRAPE_INTERVAL`."""
        return "DSOBS_" + "__".join(self.key).upper()


@dataclass(frozen=True, slots=True)
class Section:
    """A group of settings."""

    key: Key
    model: type[BaseModel]
    optional: bool
    """Absent unless written."""


def dotted(key: tuple[str | int, ...]) -> str:
    """`target.url`; list items as `rules.files[0]`; unprintable names are escaped."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part.isprintable() else ascii(part)
            text += f".{name}" if text else name
    return text


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        kept = [one for one in get_args(annotation) if one is not type(None)]
        if len(kept) == 1:
            return kept[0], True
    return annotation, False


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


_KINDS = {int: Kind.WHOLE, float: Kind.NUMBER, bool: Kind.SWITCH, Path: Kind.PATH, Secret: Kind.SECRET, str: Kind.TEXT}


def _setting(section: Section, attribute: str, field: FieldInfo, inner: Any, optional: bool) -> Setting:
    is_list = get_origin(inner) is tuple
    item = _bare(get_args(inner)[0]) if is_list else inner
    choices: tuple[str, ...] = ()
    if Duration in field.metadata:
        kind = Kind.DURATION
    elif get_origin(item) is Literal:
        kind, choices = Kind.CHOICE, tuple(get_args(item))
    elif isinstance(item, type) and issubclass(item, Enum):
        kind, choices = Kind.CHOICE, tuple(str(one.value) for one in item)
    else:
        kind = _KINDS[item]
    key = (*section.key, field.alias or attribute)
    return Setting(key, kind, is_list, optional, choices, field, section, attribute)


def _walk(section: Section) -> Iterator[Section | Setting]:
    yield section
    for attribute, field in section.model.model_fields.items():
        inner, optional = _without_none(field.annotation)
        inner = _bare(inner)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _walk(Section((*section.key, field.alias or attribute), inner, optional))
        else:
            yield _setting(section, attribute, field, inner, optional)


@cache
def sections() -> dict[Key, Section]:
    """All sections, the whole file (the empty key) first."""
    return {item.key: item for item in _walk(Section((), Config, False)) if isinstance(item, Section)}


@cache
def settings() -> dict[Key, Setting]:
    """All settings, in the order of the models."""
    return {item.key: item for item in _walk(Section((), Config, False)) if isinstance(item, Setting)}


def value_of(config: Config, key: Key) -> Any:
    """What `config` holds under `key`: a value, a section, or None where an optional section is absent."""
    value: Any = config
    for depth in range(len(key)):
        if value is None:
            return None
        setting = settings().get(key[: depth + 1])
        value = getattr(value, setting.attribute if setting else key[depth])
    return value


def shown(setting: Setting, value: Any) -> Any:
    """A setting's value as it may be written: durations in words, secrets as references or stars."""
    if setting.is_list:
        return [str(item) for item in value]
    if value is not None and setting.kind is Kind.DURATION:
        return format_duration(value)
    if value is not None and not isinstance(value, (bool, int, float)):
        return str(value)
    return value


def shown_settings(config: Config) -> Iterator[tuple[Key, Any]]:
    """Each setting in force as `shown` gives it; an optional section that is absent as None, once."""
    absent = {key for key in sections() if key and value_of(config, key) is None}
    told: set[Key] = set()
    for key, setting in settings().items():
        section = key[:-1]
        if section not in absent:
            yield key, shown(setting, value_of(config, key))
        elif section not in told:
            told.add(section)
            yield section, None


def tree_of(config: Config) -> dict[str, Any]:
    """All of them, section in section."""
    tree: dict[str, Any] = {}
    for key, value in shown_settings(config):
        place = tree
        for part in key[:-1]:
            place = place.setdefault(part, {})
        place[key[-1]] = value
    return tree
