"""From settings to what runs: read and checked whole before any of it is used."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeAlias

from dsobs.config import Config, ConfigError, Finding, Loaded, Problem, ReloadError
from dsobs.config.settings import settings, value_of
from dsobs.notifiers.inhibition import InhibitRule
from dsobs.pipeline import inhibit_rules, rule_groups
from dsobs.rules import Group
from dsobs.rules.files import RuleFileError
from dsobs.rules.reader import Problem as RuleProblem
from dsobs.sidecar.page_texts import bad_templates
from dsobs.silences import Matcher, MatcherError, fit_no_label

log = logging.getLogger(__name__)

AT_START_ONLY = ("target", "runtime", "state", "api.listen", "api.control_token", "log.format", "reload")
"""Settings and sections that a running dsobs keeps as they were at its start."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings and what their files hold."""

    config: Config
    groups: list[Group]
    inhibit: list[InhibitRule]
    left: tuple[str, ...] = ()
    """Settings that were changed and need a restart, dotted."""


def with_files(error: ConfigError, running: Config | None = None) -> ConfigError:
    """The error together with what is wrong with rule and inhibition files: all is said at once.

    Where it can't be told which files the settings are to name, those of `running` are looked at.
    """
    config = error.rest.config if error.rest is not None else running
    problems = list(error.problems)
    if config is not None:
        read_files(config, problems)
    return ConfigError(problems, error.rest)


Placed: TypeAlias = Callable[[Iterable[Finding]], list[Problem]]
"""What gives findings the places of the settings that they are about."""


def unplaced(findings: Iterable[Finding]) -> list[Problem]:
    """Of settings that nobody wrote."""
    return [Problem("", finding.key, finding.message) for finding in findings]


def read_plan(config: Config, placed: Placed = unplaced) -> Plan:
    """Reads the files that `config` names; ConfigError with all that is wrong with them and with what pages hold."""
    problems = placed(unusable(config))
    groups, inhibit = read_files(config, problems)
    if problems:
        raise ConfigError(problems)
    return Plan(config, groups, inhibit)


def read_files(config: Config, problems: list[Problem]) -> tuple[list[Group], list[InhibitRule]]:
    """Rules and inhibition; everything that is wrong with the files is added to `problems`."""
    groups: list[Group] = []
    inhibit: list[InhibitRule] = []
    try:
        groups = rule_groups(config)
    except RuleFileError as error:
        problems += [_of_rules(problem) for problem in error.problems]
    try:
        inhibit = inhibit_rules(config)
    except ConfigError as error:
        problems += error.problems
    return groups, inhibit


def _of_rules(problem: RuleProblem) -> Problem:
    where = f"{problem.file}:{problem.line}" if problem.line else problem.file
    return Problem(where, "", str(problem).removeprefix(f"{where}: "), in_file=True)


def unusable(config: Config) -> Iterator[Finding]:
    """Templates and matchers that are none, and what needs an extra that is not installed."""
    yield from bad_templates(config)
    for key, section in (("otlp.endpoint", config.otlp), ("logs.otlp.endpoint", config.logs.otlp)):
        if section is not None and not otlp_installed():
            yield Finding(key, (key,), "is set, and OpenTelemetry is not installed; pip install 'dsobs[otlp]'")
    alertmanager = config.notifiers.alertmanager
    if alertmanager is not None and alertmanager.silence_scope:
        key = "notifiers.alertmanager.silence_scope"
        try:
            scope = [Matcher.parse(text) for text in alertmanager.silence_scope]
        except MatcherError as error:
            yield Finding(key, (key,), str(error))
        else:
            if fit_no_label(scope):
                yield Finding(
                    key,
                    (key,),
                    f"{' '.join(map(str, scope))} fits whatever has no such label, so that a silence would hold for "
                    "every server; write what names this one, such as pod=vllm-0",
                )


def otlp_installed() -> bool:
    """Whether the extra `otlp` is there, without importing it."""
    names = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.common")
    try:
        return all(find_spec(name) is not None for name in names)
    except ModuleNotFoundError:
        return False


def reread_plan(reread: Callable[[], Loaded], running: Config) -> Plan:
    """What is to run from now on; ReloadError where it can't. Reads files: not on the event loop."""
    try:
        try:
            loaded = reread()
        except ConfigError as error:
            raise with_files(error, running) from error
        left = changed_at_start_only(running, loaded.config)
        plan = read_plan(kept(running, loaded.config), loaded.problems)
    except ConfigError as error:
        raise ReloadError(str(error)) from error
    except (OSError, LookupError, ValueError) as error:
        raise ReloadError(f"{type(error).__name__}: {error}") from error
    return Plan(plan.config, plan.groups, plan.inhibit, left)


def changed(old: Config, new: Config) -> tuple[str, ...]:
    """Names of the settings that differ, dotted."""
    return tuple(".".join(key) for key in settings() if value_of(old, key) != value_of(new, key))


def changed_at_start_only(old: Config, new: Config) -> tuple[str, ...]:
    """Those of them that need a restart."""
    return tuple(
        name for name in changed(old, new) if any(name == one or name.startswith(f"{one}.") for one in AT_START_ONLY)
    )


def kept(old: Config, new: Config) -> Config:
    """`new` with what needs a restart as it is."""
    return new.model_copy(
        update={
            **{name: getattr(old, name) for name in ("target", "runtime", "state", "reload")},
            "api": new.api.model_copy(update={"listen": old.api.listen, "control_token": old.api.control_token}),
            "log": new.log.model_copy(update={"format": old.log.format}),
        }
    )
