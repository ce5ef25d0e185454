"""What lines mean. A format is found by entry point (`dsobs.log_formats`): name → a `Format`, called without arguments.

A format knows how to open a parser for a file; the parser keeps what spans several lines (a traceback, a partial line
of a container runtime). The same lines must give the same records, wherever blocks begin and end, or ids differ.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from dsobs import plugins
from dsobs.logs.record import Common, Lines, LogFile, Record

GROUP = "dsobs.log_formats"


class Parser(Protocol):
    """Makes records of the lines of one file, which come in order."""

    @property
    def dataset(self) -> str:
        """Last part of the data stream's dataset, `dsobs.<this>`: `vllm`, `json` … Constant once a record was given."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """What all records of this file have in common, by dotted ECS name, beside what dsobs adds; constant."""

    @property
    def decided(self) -> str:
        """What it found out about its file by what stands in it, in its own words: a parser that is opened with it
        (`LogFile.decided`) does the same. Empty while it has not, and where there is nothing to find out."""

    @property
    def held_from(self) -> int | None:
        """Offset of the first line of what is not finished yet, where reading begins after a restart; None: nothing."""

    def parse(self, lines: Lines) -> list[Record]:
        """Records that `lines` finish, in the order of their offsets where they do not interleave.

        Never raises: a line that is not of the format is a record with its text as `message` and an `error.message`.
        """

    def flush(self) -> list[Record]:
        """Nothing came for a second, or nothing will: what is not finished, as it stands."""


class Format(Protocol):
    """One format of log files."""

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> Parser:
        """A parser for `file`.

        `as_fields`: a transform looks into documents, so each must be a `dict`; else `bytes` are welcome wherever
        they hold none of `common.reserved`.
        """


def format_named(name: str) -> Format:
    """The format plugin `name`; LookupError names those there are."""
    made: Format = plugins.load(GROUP, name)()
    return made
