"""From the file, the environment and the flags to a `Config`, with everything that is wrong said at once.

`DSOBS_` and the setting's name in capitals, levels joined by two underscores: `DSOBS_TARGET__SCRAPE_INTERVAL=2s`. Lists
are separated by commas, and an empty variable counts as not set. The file is the weakest, flags are the strongest.
Relative paths in the file start from the file's directory.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dsobs.config.checks import SECRET_ADDRESSES, Finding, contradictions
from dsobs.config.document import Place, read_document
from dsobs.config.models import Config
from dsobs.config.problem import ConfigError, Problem
from dsobs.config.settings import Key, Kind, Section, Setting, dotted, sections, settings

CONFIG_VARIABLE = "DSOBS_CONFIG"
"""Path of the settings file, where no flag gives one."""
OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, "DSOBS_TOOL_CACHE"})
"""Variables that begin with DSOBS_ and are no settings: the last two are for those who build dsobs, whose demos and
tests start it."""
SHORTHANDS: Mapping[str, str] = {
    "--url": "target.url",
    "--mode": "remediation.mode",
    "--listen": "api.listen",
    "--state-dir": "state.directory",
    "--log-format": "log.format",
}
"""Flags of their own for settings that are often given by hand."""

# What Kubernetes and Docker links put into the environment of every container beside a service named dsobs.
_SERVICE_LINK = re.compile(
    r"DSOBS(_[A-Z0-9]+)*(_SERVICE_HOST|_SERVICE_PORT(_[A-Z0-9_]+)?|_PORT|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written."""

    where: str
    """`FILE:LINE`, a variable, or a flag."""
    order: tuple[int, int]
    """To sort by: file before variables before flags, then the line."""
    in_file: bool = False


@dataclass
class Loaded:
    """A configuration and where its values came from."""

    config: Config
    origins: Mapping[str, str]
    """Dotted name → where it was written, for every setting that somebody wrote."""
    _sources: "_Sources" = field(repr=False)

    def problems(self, findings: Iterable[Finding]) -> list[Problem]:
        """The findings with their places."""
        return [_placed(self._sources, finding)[1] for finding in findings]


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, str]) -> Config:
    """The configuration; ConfigError with all its problems where it can't be used.

    `overrides` maps a dotted name (`target.url`, from `--set`) or a flag of SHORTHANDS to the text that was given.
    """
    return load_with_origins(path, environ, overrides).config


def load_with_origins(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, str]) -> Loaded:
    """The same, and where each value was written."""
    sources = _Sources()
    if path is not None:
        sources.add_file(path)
    sources.add_environment(environ)
    sources.add_overrides(overrides)
    sources.refuse_unknown_variables()
    config = sources.validate()
    origins = {".".join(key): sources.origins[key].where for key in settings() if key in sources.origins}
    loaded = Loaded(config, origins, sources) if config is not None else None
    if sources.problems or loaded is None:
        # Variables have no order of their own but their names.
        ordered = sorted(sources.problems, key=lambda item: (item[0], item[1].where if item[0][0] == 1 else ""))
        raise ConfigError((problem for _, problem in ordered), loaded)
    return loaded


@dataclass
class _Sources:
    """The layers as they are laid over each other."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Place, Origin] = field(default_factory=dict)
    problems: list[tuple[tuple[int, int], Problem]] = field(default_factory=list)
    _unknown_variables: list[str] = field(default_factory=list)

    def add_file(self, path: Path) -> None:
        try:
            document = read_document(path)
        except ConfigError as error:
            self.problems += [((0, 0), problem) for problem in error.problems]
            return
        self.problems += [((0, line), problem) for line, problem in document.problems]
        for place, line in document.lines.items():
            self.origins[place] = Origin(f"{document.name}:{line}", (0, line), in_file=True)
        self.tree = document.tree
        for section in sections().values():
            self._drop_empty(section)
        for setting in settings().values():
            self._refuse_written_out(setting)
            self._rebase(setting, path.parent)

    def _parent(self, key: Key) -> dict[str, Any] | None:
        """The dictionary that holds `key`, None where there is none."""
        tree: Any = self.tree
        for part in key[:-1]:
            tree = tree.get(part) if isinstance(tree, dict) else None
        return tree if isinstance(tree, dict) else None

    def _drop_empty(self, section: Section) -> None:
        """A section with nothing below it is left at its defaults."""
        parent = self._parent(section.key) if section.key else None
        if parent is not None and section.key[-1] in parent and parent[section.key[-1]] is None:
            del parent[section.key[-1]]

    def _refuse_written_out(self, setting: Setting) -> None:
        """Files are shared, kept in version control and shown in tickets: a secret does not stand in one."""
        parent = self._parent(setting.key)
        value = parent.get(setting.key[-1]) if parent is not None else None
        if setting.kind is not Kind.SECRET or dotted(setting.key) in SECRET_ADDRESSES or not isinstance(value, str):
            return
        if value and not value.startswith(("file:", "env:")):
            origin = self.origin(setting.key)
            message = "is a secret written out; put it into a file or a variable and write file:PATH or env:NAME here"
            self.problems.append((origin.order, Problem(origin.where, dotted(setting.key), message, in_file=True)))

    def _rebase(self, setting: Setting, directory: Path) -> None:
        parent = self._parent(setting.key)
        if parent is None or setting.kind not in (Kind.PATH, Kind.SECRET):
            return
        name = setting.key[-1]
        value = parent.get(name)
        if setting.is_list:
            if isinstance(value, list):
                parent[name] = [str(directory / one) if isinstance(one, str) else one for one in value]
        elif isinstance(value, str) and setting.kind is Kind.PATH:
            parent[name] = str(directory / value)
        elif isinstance(value, str) and value.startswith("file:") and value != "file:":
            parent[name] = f"file:{directory / value.removeprefix('file:')}"

    def add_environment(self, environ: Mapping[str, str]) -> None:
        names = {setting.variable: setting for setting in settings().values()}
        for name in sorted(environ):
            if not name.startswith("DSOBS_") or name in OTHER_VARIABLES:
                continue
            setting = names.get(name)
            if setting is None:
                if not _SERVICE_LINK.fullmatch(name):
                    self._unknown_variables.append(name)
            elif environ[name]:
                self._put(setting, environ[name], Origin(name, (1, 0)))

    def refuse_unknown_variables(self) -> None:
        """Left out are those that a secret of this configuration refers to."""
        referred = set()
        for setting in settings().values():
            parent = self._parent(setting.key)
            value = parent.get(setting.key[-1]) if parent is not None else None
            if setting.kind is Kind.SECRET and isinstance(value, str) and value.startswith("env:"):
                referred.add(value.removeprefix("env:"))
        names = {setting.variable for setting in settings().values()}
        for name in self._unknown_variables:
            if name not in referred:
                near = difflib.get_close_matches(name.upper(), names | OTHER_VARIABLES, n=1, cutoff=0.75)
                advice = f"did you mean {near[0]}?" if near else "rename or unset it"
                shown = name if name.isprintable() else ascii(name)
                self.problems.append(((1, 0), Problem(shown, "", f"is no setting of dsobs; {advice}")))

    def add_overrides(self, overrides: Mapping[str, str]) -> None:
        given: dict[Key, str] = {}
        for name, text in overrides.items():
            flag = name if name in SHORTHANDS else f"--set {name}"
            key = tuple(SHORTHANDS.get(name, name).split("."))
            origin = Origin(flag, (2, len(given)))
            setting = settings().get(key)
            if setting is None:
                message = _unknown(key)
                if key in sections():
                    message = f"is a section; set one of {', '.join(sorted(map(dotted, _settings_below(key))))}"
                self.problems.append((origin.order, Problem(flag, dotted(key), message)))
            elif key in given:
                message = f"sets {dotted(key)}, and so does {given[key]}; give one of them"
                self.problems.append((origin.order, Problem(flag, dotted(key), message)))
            elif setting.kind is Kind.SECRET and not text.startswith(("file:", "env:", "http://", "https://")):
                message = "is a secret on the command line, where others can read it; write file:PATH or env:NAME"
                self.problems.append((origin.order, Problem(flag, dotted(key), message)))
            else:
                given[key] = flag
                self._put(setting, text, origin)

    def _put(self, setting: Setting, text: str, origin: Origin) -> None:
        tree = self.tree
        for part in setting.key[:-1]:
            below = tree.setdefault(part, {})
            if not isinstance(below, dict):
                return  # the file has something else there, which is reported as such
            tree = below
        value: Any = [part.strip() for part in text.split(",") if part.strip()] if setting.is_list else text
        tree[setting.key[-1]] = value
        for place in [place for place in self.origins if place[: len(setting.key)] == setting.key]:
            del self.origins[place]
        self.origins[setting.key] = origin

    def origin(self, place: Place) -> Origin:
        """Where the innermost part of `place` that anybody wrote was written."""
        for length in range(len(place), 0, -1):
            if place[:length] in self.origins:
                return self.origins[place[:length]]
        below = [origin for written, origin in self.origins.items() if written[: len(place)] == place]
        return min(below, key=lambda origin: origin.order, default=Origin("", (3, 0)))

    def validate(self) -> Config | None:
        """The configuration without the settings that are wrong; None where that can't be made."""
        wrong: set[str] = set()
        try:
            config = Config.model_validate(self.tree)
        except ValidationError as error:
            details = error.errors(include_url=False)
            for detail in details:
                place = detail["loc"]
                if any(other["loc"][: len(place)] == place and len(other["loc"]) > len(place) for other in details):
                    continue  # wrong only because something in it is
                missing = detail["type"] == "missing"
                if missing and any(problem.key == dotted(place) for _, problem in self.problems):
                    continue  # it was written, and refused
                origin = self.origin(place[:-1] if missing else place)
                message = explain(detail)
                if missing and origin.where and not origin.in_file:
                    # What is written there is another setting of the same section.
                    message = f"{dotted(place)} {message}"
                problem = Problem(origin.where, dotted(place), message, origin.in_file)
                self.problems.append((origin.order, problem))
                wrong.add(dotted(place).partition("[")[0])
                self._remove(place, whole=missing)
            try:
                config = Config.model_validate(self.tree)
            except ValidationError:
                return None
        for finding in contradictions(config):
            if wrong.isdisjoint((finding.key, *finding.because)):
                self.problems.append(_placed(self, finding))
        return config

    def _remove(self, place: Place, *, whole: bool) -> None:
        key = tuple(part for part in place if isinstance(part, str))
        key = key[:-1] if whole else key
        parent = self._parent(key)
        if parent is not None:
            parent.pop(key[-1], None)


def _placed(sources: _Sources, finding: Finding) -> tuple[tuple[int, int], Problem]:
    written = (sources.origins.get(tuple(name.split("."))) for name in finding.because)
    origin = next(filter(None, written), Origin("", (3, 0)))
    # A variable or flag names only itself: where another setting is to be changed, its name must be said.
    key_said = origin.in_file or origin.where == _given_name(origin, finding.key)
    message = finding.message if key_said or not origin.where else f"{finding.key} {finding.message}"
    return origin.order, Problem(origin.where, finding.key, message, origin.in_file)


def _given_name(origin: Origin, key: str) -> str:
    setting = settings()[tuple(key.split("."))]
    if origin.where == setting.variable or SHORTHANDS.get(origin.where) == key:
        return origin.where
    return f"--set {key}"


def _settings_below(key: Key) -> Iterator[Key]:
    return (one for one in settings() if one[: len(key)] == key)


def _unknown(key: Key) -> str:
    """What is meant by a name that does not exist."""
    known = [*settings(), *filter(None, sections())]
    siblings = {one[-1]: one for one in known if one[:-1] == key[:-1]}
    near = difflib.get_close_matches(key[-1], siblings, n=1)
    if near:
        return f"there is no such setting; did you mean {dotted(siblings[near[0]])}?"
    namesakes = [dotted(one) for one in known if one[-1] == key[-1]]
    if namesakes:
        return f"there is no such setting; did you mean {' or '.join(namesakes)}?"
    others = [dotted(one) for one in known if one != key[: len(one)]]
    close = difflib.get_close_matches(dotted(key), others, n=1)
    if close:
        return f"there is no such setting; did you mean {close[0]}?"
    if siblings:
        return f"there is no such setting; there are {', '.join(sorted(siblings))}"
    return "there is no such setting; `dsobs config show` lists all"


def explain(detail: ErrorDetails) -> str:
    """What is wrong and what to do, in plain words and without the value of a secret."""
    place, kind, given = detail["loc"], detail["type"], detail["input"]
    key = tuple(part for part in place if isinstance(part, str))
    context = detail.get("ctx", {})
    if kind == "missing":
        return (
            "is missing; write it"
            if settings()[key].kind is not Kind.SECRET
            else ("is missing; write file:PATH or env:NAME")
        )
    if kind == "extra_forbidden":
        return _unknown(key)
    if key in sections():
        return "is one value, where settings are wanted; write lines of `name: value` below it"
    setting = settings()[key]
    item = bool(place) and isinstance(place[-1], int)
    if given is None:
        return "has no value; write one or delete the line"
    if isinstance(given, dict):
        return f"holds settings, where {_wanted(setting, item)} is wanted; write it behind the colon"
    if isinstance(given, list) and (not setting.is_list or item):
        return f"is a list, where {_wanted(setting, item)} is wanted; write one value"
    if setting.kind is Kind.SECRET:
        return str(context.get("error", "is no text; write file:PATH or env:NAME"))
    shown = _shown(given)
    if setting.is_list and not item and isinstance(given, str):
        advice = f"write [{given}]" if len(given) < 80 and given.isprintable() else "put it in brackets"
        return f"is one value, where a list is wanted; {advice}"
    match kind:
        case "value_error":
            return str(context["error"])
        case "too_short":
            return "is empty; name at least one"
        case "greater_than":
            return f"is {shown}; write more than {context['gt']:g}"
        case "greater_than_equal":
            return f"is {shown}; write {_number(context['ge'])} or more"
        case "less_than_equal":
            return f"is {shown}; write {_number(context['le'])} or less"
        case "finite_number":
            return f"is {shown}; write a finite number"
    if setting.kind is Kind.CHOICE:
        near = difflib.get_close_matches(str(given), setting.choices, n=1)
        advice = f"did you mean {near[0]}?" if near else "write one of them"
        return f"{shown} is none of {', '.join(filter(None, setting.choices))}; {advice}"
    if setting.kind is Kind.SWITCH:
        return f"{shown} is neither true nor false; write one of them"
    return f"{shown} is no {setting.kind}; write {_wanted(setting, item)}"


def _number(value: float) -> str:
    """Whole numbers with all their digits."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def _wanted(setting: Setting, item: bool) -> str:
    if setting.is_list and not item:
        return "a list"
    match setting.kind:
        case Kind.SWITCH:
            return "true or false"
        case Kind.CHOICE:
            return f"one of {', '.join(setting.choices)}"
        case Kind.DURATION:
            return "a duration such as 500ms, 30s or 5m"
        case Kind.SECRET:
            return "file:PATH or env:NAME"
        case _:
            return f"a {setting.kind}"


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:56]}…{text[-1]}"
