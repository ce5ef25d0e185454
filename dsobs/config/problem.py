"""What is wrong with a configuration, for people."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsobs.config.load import Loaded

_USERINFO = re.compile(r"//[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong; `str()` is the line to print."""

    where: str
    """`FILE:LINE`, `FILE`, a variable's name, a flag, or empty where nobody wrote anything."""
    key: str
    """Dotted name of the setting; empty for the file as a whole."""
    message: str
    """What is wrong; what to do."""
    in_file: bool = False
    """Where it came from is a place in the file, which does not name the setting by itself."""

    def __str__(self) -> str:
        key = self.key if self.in_file or not self.where else ""
        return ": ".join(part for part in (self.where, key, _USERINFO.sub("//********@", self.message)) if part)


class ConfigError(Exception):
    """The configuration can't be used.

    `problems` holds everything that is wrong with it, in the order of the file; `rest` is the configuration without
    that, where it can be told: the rest, and what its files hold, can be looked at all the same.
    """

    def __init__(self, problems: Iterable[Problem], rest: "Loaded | None" = None) -> None:
        self.problems = tuple(problems)
        self.rest = rest
        super().__init__("\n".join(map(str, self.problems)))


class ReloadError(Exception):
    """The settings can't be read again, and those of before hold; the message has a line for each problem."""
