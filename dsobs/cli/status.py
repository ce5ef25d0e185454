"""`dsobs status`: the server on one screen, from a running dsobs."""

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_error, print_json, printable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from dsobs.config import Config
    from dsobs.model.status import Status, Tile

WATCH_SECONDS = 2.0
MAX_ALERTS = 6
MAX_LINES = 5
NOT_A_TERMINAL_COLUMNS = 110
_COLOURS = {
    "healthy": "green",
    "degraded": "yellow",
    "faulty": "red",
    "good": "green",
    "bad": "red",
    "unknown": "bright_black",
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "status",
        help="show the server on one screen; the exit status says whether it is healthy",
        description="Shows what the status page shows, from the dsobs that serves on api.listen. Exit status: 0 "
        "healthy; 1 degraded or faulty (an alert fires, or it is down or hung); 4 not known to be healthy (unknown, "
        "starting, stopped on purpose); 3 no dsobs answers.",
    )
    parser.add_argument("--watch", action="store_true", help=f"again each {WATCH_SECONDS:.0f} s, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, as /api/v1/status gives it")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """By the state, see `code_of`; 3 if none answers."""
    config = load_config(args)
    if args.watch:
        return _watch(config, as_json=args.json)
    told = _asked(config)
    if args.json:
        print_json(told)
        return code_of(str(told.get("state", "")))
    from rich.console import Console

    status = read(told)
    console = _console()
    assert isinstance(console, Console)
    console.print(screen(status))
    return code_of(status.state)


def code_of(state: str) -> ExitCode:
    """What scripts are told: 0 only for what is known to be healthy."""
    if state == "healthy":
        return ExitCode.DONE
    return ExitCode.FAILED if state in ("degraded", "faulty") else ExitCode.UNKNOWN


def _asked(config: "Config") -> dict[str, Any]:
    from dsobs.cli.control_api import ask

    try:
        told: dict[str, Any] = ask(config, "GET", "/status")
    except CommandError as error:
        # One that refuses has not said that something is wrong with the server.
        code = ExitCode.UNREACHABLE if error.code == ExitCode.FAILED else error.code
        raise CommandError(str(error), code) from error
    return told


def read(told: dict[str, Any]) -> "Status":
    """The answer of `/api/v1/status`; CommandError (3) where it is none that this dsobs knows."""
    from pydantic import TypeAdapter, ValidationError

    from dsobs.model.status import Status

    try:
        return TypeAdapter(Status).validate_python(told)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CommandError(
            f"what answers is no dsobs of this version ({where}: {first['msg']}); use its own `dsobs status`",
            ExitCode.UNREACHABLE,
        ) from error


def _console() -> Any:
    import sys

    from rich.console import Console

    at_terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if at_terminal else NOT_A_TERMINAL_COLUMNS,
    )


def _watch(config: "Config", *, as_json: bool) -> int:
    from rich.live import Live

    if as_json:
        while True:
            try:
                print_json(_asked(config))
            except CommandError as error:
                print_error(str(error))
            time.sleep(WATCH_SECONDS)
    console = _console()
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            try:
                live.update(screen(read(_asked(config))), refresh=True)
            except CommandError as error:
                # Nothing old stays on the screen as if it were so now.
                live.update(_text(f"UNKNOWN  {error}", "bright_black"), refresh=True)
            time.sleep(WATCH_SECONDS)


def _text(words: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(printable(words), style=style)


def screen(status: "Status") -> "Group":
    """All of it for a terminal; whatever comes from elsewhere is text, with control characters escaped."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text.assemble(
        (f" {status.state.value.upper()} ", f"bold reverse {_COLOURS.get(status.state.value, '')}"),
        printable(f"  {status.name}  {status.engine or 'engine not recognized'} at {status.target}, "),
        f"{time.strftime('%H:%M:%S', time.gmtime(status.at))} UTC",
    )
    facts = Table.grid(padding=(0, 2))
    for fact in status.facts:
        word = {"unknown": "not known"}.get(fact.verdict.value, fact.verdict.value)
        facts.add_row(_text(fact.name), _text(word, _COLOURS.get(fact.verdict.value, "")), _text(fact.text))
    parts: list[Any] = [head, _text(status.headline, "bold"), facts, Text("")]
    parts += _alerts(status)
    parts.append(_tiles(status.indicators))
    parts += [Text(""), *_repair(status)]
    dsobs = next((tail for tail in status.log_tails if tail.name == "dsobs"), None)
    if dsobs is not None and dsobs.lines:
        parts += [Text(""), *(_text(line, "bright_black") for line in dsobs.lines[-MAX_LINES:])]
    return Group(*parts)


def _alerts(status: "Status") -> "list[Text]":
    alerts = status.alerts
    lines = [_text(f"Alerts: {alerts.firing} firing, {alerts.pending} pending", "bold")]
    for alert in alerts.shown[:MAX_ALERTS]:
        silenced = ", silenced" if alert.silenced else ""
        style = {"critical": "red", "warning": "yellow"}.get(alert.severity, "") if alert.state == "firing" else ""
        lines.append(_text(f"  {alert.name} ({alert.severity}, {alert.state}{silenced}) {alert.summary}", style))
    more = len(alerts.shown) - MAX_ALERTS + alerts.left_out
    if more > 0:
        lines.append(_text(f"  and {more} more: http API /api/v1/alerts"))
    lines += [_text(f"  rule {name} can't be evaluated: {error}") for name, error in alerts.failing_rules[:MAX_LINES]]
    return lines


def _tiles(tiles: "Sequence[Tile]") -> Any:
    """Three columns, one for each class of indicators."""
    from rich.table import Table

    classes = list(dict.fromkeys(tile.about for tile in tiles))
    table = Table(*classes, box=None, header_style="bold", pad_edge=False, expand=True)
    columns = [[_tile(tile) for tile in tiles if tile.about == about] for about in classes]
    for row in range(max(map(len, columns), default=0)):
        table.add_row(*(column[row] if row < len(column) else "" for column in columns))
    return table


def _tile(tile: "Tile") -> "Text":
    if tile.unknown or not tile.readings:
        return _text(f"{tile.title}: unknown", "bright_black")
    first = tile.readings[0]
    more = f" (+{len(tile.readings) - 1 + tile.left_out} models)" if len(tile.readings) + tile.left_out > 1 else ""
    return _text(f"{tile.title}: {first.shown}{more}", "red" if first.bad else "")


def _repair(status: "Status") -> "list[Text]":
    guards = status.guards
    left = (
        "budget unknown"
        if guards.budget_left is None
        else f"{guards.budget_left} of {guards.max_restarts_24h} restarts left"
    )
    parts = [f"mode {guards.mode}", left]
    if guards.cooldown_left > 0:
        parts.append(f"cooldown {guards.cooldown_left:.0f} s")
    if guards.killed:
        parts.append(f"kill switch on ({guards.killed})")
    if not guards.ledger_writable:
        parts.append("the ledger can't be written")
    lines = [_text(f"Repair: {', '.join(parts)}", "bold"), _text(f"  {status.next_text}")]
    if status.incidents:
        last = status.incidents[0]
        entry = last.entries[-1] if last.entries else None
        said = f", last: {entry.what} {entry.text}" if entry is not None else ""
        lines.append(_text(f"  incident {last.id} {'closed' if last.closed else 'open'}{said}"))
    return lines
