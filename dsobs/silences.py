"""Silences: while one holds, matching alerts notify nobody and repair nothing. Kept in `state.db`."""

import json
import re
import secrets
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dsobs.regex import RegexError, compile_whole

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS silences (
        id TEXT PRIMARY KEY,
        matchers TEXT NOT NULL,
        starts_at REAL NOT NULL,
        ends_at REAL NOT NULL,
        created_by TEXT NOT NULL,
        comment TEXT NOT NULL
    )""",
)
_MATCHER = re.compile(
    r"""\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*(?:"((?:[^"\\]|\\.)*)"|(?!")(.*?))\s*""", re.DOTALL
)
_ESCAPE = re.compile(r'\\([\\"n])')


class MatcherError(ValueError):
    """A matcher that is none; the message says how one is written."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """`name op value` as in Alertmanager: op is =, !=, =~ or !~; regular expressions (RE2) match the whole value."""

    name: str
    op: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Matcher":
        r"""From `alertname=EngineHung` or `model_name=~"r1-.*"`; MatcherError else.

        Between quotes, a backslash escapes quotes, backslashes and (as `\n`) line ends; else it stands for itself.
        """
        match = _MATCHER.fullmatch(text)
        if match is None:
            raise MatcherError(f'{text!r} is no matcher; write name=value, name!=value, name=~"regex" or name!~"regex"')
        name, op, quoted, bare = match.groups()
        value = bare if quoted is None else _ESCAPE.sub(lambda e: "\n" if e[1] == "n" else e[1], quoted)
        if op in ("=~", "!~"):
            try:
                compile_whole(value)
            except RegexError as error:
                raise MatcherError(f"{text!r}: bad regular expression: {error}") from error
        return cls(name, op, value)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a label set fits; a label that is not there is empty."""
        value = labels.get(self.name, "")
        if self.op in ("=", "!="):
            return (value == self.value) == (self.op == "=")
        return (compile_whole(self.value).fullmatch(value) is not None) == (self.op == "=~")

    def __str__(self) -> str:
        value = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{self.name}{self.op}"{value}"'


@dataclass(frozen=True, slots=True)
class Silence:
    """One silence, from `starts_at` to `ends_at` (Unix seconds)."""

    id: str
    matchers: tuple[Matcher, ...]
    starts_at: float
    ends_at: float
    created_by: str = ""
    comment: str = ""

    def silences(self, labels: Mapping[str, str], now: float) -> bool:
        """Whether it holds now for this label set."""
        return self.starts_at <= now < self.ends_at and all(matcher.matches(labels) for matcher in self.matchers)


def fit_no_label(matchers: Iterable[Matcher]) -> bool:
    """Whether they all fit a label that is not there, and so whatever has none of them: as a rule by a slip."""
    return all(matcher.matches({}) for matcher in matchers)


def new(matchers: Iterable[str], now: float, seconds: float, created_by: str, comment: str) -> Silence:
    """A silence from now on; MatcherError for a bad matcher, none at all, only such as fit an empty label, or no
    time."""
    parsed = tuple(Matcher.parse(text) for text in matchers)
    if not parsed:
        raise MatcherError("a silence needs at least one matcher, such as alertname=EngineHung")
    if fit_no_label(parsed):
        # As Alertmanager does: such a slip would silence all alerts and stop all repair.
        raise MatcherError(
            f"{' '.join(str(matcher) for matcher in parsed)} fits whatever has no such label, which may be all alerts; "
            'add a matcher that does not, such as alertname=EngineHung, or alertname=~".+" for all of them'
        )
    if not 0 < seconds <= 90 * 86400:
        raise MatcherError("a silence lasts more than 0 s and at most 90 days")
    return Silence(secrets.token_hex(8), parsed, now, now + seconds, created_by, comment)


def save(connection: sqlite3.Connection, silence: Silence) -> None:
    """Writes it inside the caller's transaction, over one of the same id."""
    connection.execute(
        "INSERT OR REPLACE INTO silences VALUES (?, ?, ?, ?, ?, ?)",
        (
            silence.id,
            json.dumps([str(matcher) for matcher in silence.matchers]),
            silence.starts_at,
            silence.ends_at,
            silence.created_by,
            silence.comment,
        ),
    )


def load(connection: sqlite3.Connection, now: float) -> list[Silence]:
    """Those that have not ended."""
    rows = connection.execute(
        "SELECT id, matchers, starts_at, ends_at, created_by, comment FROM silences WHERE ends_at > ?", (now,)
    ).fetchall()
    found = [Silence(r[0], tuple(Matcher.parse(m) for m in json.loads(r[1])), r[2], r[3], r[4], r[5]) for r in rows]
    return [_not_ahead(silence, now) for silence in found]


def _not_ahead(silence: Silence, now: float) -> Silence:
    """One that begins later than now was made before the wall clock was set back: it holds, for as long as asked."""
    ahead = silence.starts_at - now
    return silence if ahead <= 0 else replace(silence, starts_at=now, ends_at=silence.ends_at - ahead)


def prune(connection: sqlite3.Connection, now: float) -> int:
    """Drops those that ended a week ago; how many."""
    return connection.execute("DELETE FROM silences WHERE ends_at < ?", (now - 7 * 86400,)).rowcount


def holding(silences: Iterable[Silence], labels: Mapping[str, str], now: float) -> Silence | None:
    """The first silence that holds for a label set."""
    return next((silence for silence in silences if silence.silences(labels, now)), None)
