"""Regular expressions that users write, by RE2: what Go's `regexp` is, and so Prometheus and Alertmanager.

RE2 takes time linear in the text, whatever the expression; Python's `re` can be held for hours by a few characters, and
the event loop with it. It is imported with the first expression that needs it, and nothing shipped does: 2.4 MiB of
memory, 0.2 MiB of it not shared.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

MAX_BYTES = 1 << 20
"""Of memory for one compiled expression; RE2 refuses a larger one and matches within it."""
REMEMBERED = 256
_SIMPLE = re.compile(r"[a-zA-Z0-9_:]+(?:\.[*+])?(?:\|[a-zA-Z0-9_:]+(?:\.[*+])?)*|\(\.[*+]\)")
"""`a|b.+` or `(.*)`: Python's `re` reads these alike, and takes linear time for them too."""


class RegexError(ValueError):
    """No expression of RE2; the message says why."""


class Match(Protocol):
    """Where an expression was found; groups that took no part are None."""

    def __getitem__(self, group: int) -> str | None:
        """A group by number; 0 is the whole."""
        ...

    def groups(self) -> tuple[str | None, ...]:
        """All groups but the whole."""
        ...

    def groupdict(self) -> Mapping[str, str | None]:
        """Groups that have a name."""
        ...


class WholePattern(Protocol):
    """A compiled expression for whole texts, as of Python's `re`."""

    def fullmatch(self, text: str, /) -> Match | None:
        """Where all of the text fits."""
        ...


class Pattern(WholePattern, Protocol):
    """A compiled expression, as of Python's `re`."""

    def search(self, text: str) -> Match | None:
        """The first place that fits."""
        ...

    def sub(self, replacement: Callable[[Match], str], text: str) -> str:
        """The text with each place replaced."""
        ...


@functools.lru_cache(maxsize=REMEMBERED)
def compile_whole(pattern: str) -> WholePattern:
    """As in the matchers of Prometheus and Alertmanager, where `.` takes line ends too. RegexError for what is no
    expression."""
    return re.compile(pattern, re.DOTALL) if _SIMPLE.fullmatch(pattern) else compile_regex(pattern, dot_all=True)


@functools.lru_cache(maxsize=REMEMBERED)
def compile_regex(pattern: str, *, dot_all: bool = False) -> Pattern:
    """`dot_all`: `.` takes line ends too, as in the matchers of Prometheus and Alertmanager. RegexError for what is no
    expression."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_BYTES
    options.dot_nl = dot_all
    try:
        compiled: Any = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        raise RegexError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from error
    except UnicodeEncodeError as error:
        raise RegexError("it is no valid Unicode") from error
    typed: Pattern = compiled
    return typed
