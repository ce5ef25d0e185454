"""What commands print: tables for people, one JSON object a line for programs."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, file: TextIO | None = None) -> None:
    """A table: with rules and colours at a terminal (no colours under NO_COLOR), else aligned text.

    Control characters are escaped, since labels and log lines come from elsewhere.
    """
    out = sys.stdout if file is None else file
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if out.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headings, box=None, header_style="bold", pad_edge=False)
        for row in cells:
            table.add_row(*map(Text, row))
        Console(file=out).print(table)
        return
    lines = [list(headings), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=out)


def print_json(value: Mapping[str, Any], *, file: TextIO | None = None) -> None:
    """One object on one line. Paths, secrets and the like are given by `str()`; NaN and infinities are null."""
    import orjson

    print(orjson.dumps(value, default=str).decode(), file=sys.stdout if file is None else file, flush=True)


def print_error(message: str) -> None:
    """One line on stderr, in the form of all of dsobs's."""
    print(f"dsobs: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` with control characters escaped: what a terminal or a log would take for more than text."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
