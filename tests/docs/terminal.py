"""Draws README's recorded terminal session: `python -m tests.docs.terminal` runs the demo in a terminal of its own and
writes what it printed to docs/demo.svg. Lines appear in the order and, six times as fast, at the pace of that run.
"""

import os
import pty
import re
import sys
import textwrap
from html import escape
from pathlib import Path

PICTURE = Path(__file__).parents[2] / "docs" / "demo.svg"
COMMAND = ("dsobs", "demo")
COLUMNS, INDENT = 104, 27
"""Longer lines are wrapped, and go on below their text."""
CELL, LINE, MARGIN = 7.8, 19, 20
"""Pixels: width of a letter of 13 px, height of a line, space around."""
SPEED = 6.0
_COLOUR = re.compile(r"\x1b\[([0-9;]*)m")
_MOMENT = re.compile(r" *\+([0-9]+\.[0-9]) s  ")
_CLASSES = {"31": "red", "31;1": "red bold", "32": "green", "33": "yellow", "36": "cyan"}


def recorded() -> str:
    """What the demo prints in a terminal; SystemExit with its status where it fails."""
    told = bytearray()

    def keep(descriptor: int) -> bytes:
        data = os.read(descriptor, 4096)
        told.extend(data)
        return data

    status = os.waitstatus_to_exitcode(pty.spawn([sys.executable, "-m", "dsobs.cli", *COMMAND[1:]], keep))
    if status:
        sys.exit(status)
    return told.decode().replace("\r\n", "\n")


def _pieces(line: str) -> list[tuple[str, str]]:
    """(class, text) of a line with colours."""
    pieces, style, at = [], "", 0
    for match in _COLOUR.finditer(line):
        pieces.append((style, line[at : match.start()]))
        style, at = _CLASSES.get(match[1], ""), match.end()
    pieces.append((style, line[at:]))
    return [(style, text) for style, text in pieces if text]


def _wrapped(line: str) -> list[list[tuple[str, str]]]:
    """The line's rows."""
    pieces = _pieces(line)
    if sum(len(text) for _, text in pieces) <= COLUMNS:
        return [pieces]
    *before, (style, text) = pieces
    room = COLUMNS - sum(len(one) for _, one in before)
    first, *rest = textwrap.wrap(text, room, drop_whitespace=False, break_on_hyphens=False)
    more = textwrap.wrap("".join(rest).strip(), COLUMNS - INDENT, break_on_hyphens=False)
    return [[*before, (style, first)], *([(style, " " * INDENT + row)] for row in more)]


def drawn(text: str) -> str:
    """The picture of a session."""
    rows: list[tuple[float, list[tuple[str, str]]]] = [(0.0, [("prompt", "$ "), ("bold", " ".join(COMMAND))])]
    moment = 0.0
    for line in text.rstrip("\n").split("\n"):
        found = _MOMENT.match(line)
        moment = float(found[1]) if found else moment
        rows += [(moment, pieces) for pieces in _wrapped(line)]
    width, height = round(COLUMNS * CELL) + 2 * MARGIN, len(rows) * LINE + 2 * MARGIN + 24
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title" '
        'font-family="ui-monospace, \'DejaVu Sans Mono\', Menlo, Consolas, monospace" font-size="13">',
        '  <title id="title">dsobs demo: a hang is seen, paged and repaired</title>',
        "  <style>",
        "    .back { fill: #0d1117 } .bar { fill: #30363d }",
        "    text { fill: #e6edf3; white-space: pre } .bold { font-weight: 700 } .prompt { fill: #9198a1 }",
        "    .red { fill: #ff7b72 } .green { fill: #3fb950 } .yellow { fill: #d29922 } .cyan { fill: #39c5cf }",
        "    .row { animation: come 0s both } @keyframes come { from { opacity: 0 } to { opacity: 1 } }",
        "    @media (prefers-reduced-motion: reduce) { .row { animation: none } }",
        "  </style>",
        f'  <rect class="back" width="{width}" height="{height}" rx="10"/>',
        *(f'  <circle class="bar" cx="{MARGIN + 18 * number}" cy="18" r="6"/>' for number in range(3)),
    ]
    for number, (at, pieces) in enumerate(rows):
        spans, column = "", 0
        for style, piece in pieces:
            # A place of its own for each, so that columns stand in line in any font.
            spans += f'<tspan class="{style}" x="{MARGIN + column * CELL:g}">{escape(piece)}</tspan>'
            column += len(piece)
        y = MARGIN + 24 + (number + 1) * LINE - 6
        delay = f"{at / SPEED + 0.5 * (number > 0):.2f}s"
        place = f'class="row" style="animation-delay: {delay}" y="{y}" xml:space="preserve"'
        lines.append(f"  <text {place}>{spans}</text>")
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(drawn(recorded()), encoding="utf-8")
