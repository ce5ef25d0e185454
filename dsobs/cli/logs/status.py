"""`dsobs logs status`: how far each file is shipped, asked of the state directory, whether somebody ships or not."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_json, print_table

if TYPE_CHECKING:
    from dsobs.logs.checkpoint import Checkpoint

FORWARD = "forward"
"""Below a state directory, what forwards a file of records has its own."""


def add_parser(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the action."""
    parser = actions.add_parser(
        "status",
        help="how far each log file is shipped",
        description="Says how far each log file is shipped, and what holds it up. Exit status 1: something does.",
    )
    parser.add_argument("--state", metavar="DIR", type=Path, help="that of `logs ship` (else the sidecar's)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 if nothing holds shipping up, else 1."""
    from dsobs.logs.checkpoint import read_checkpoints
    from dsobs.state import StateError

    directory: Path = args.state or load_config(args).state.directory / "logs"
    folders = folders_of(directory)
    try:
        rows = [row for folder in folders for row in _rows(read_checkpoints(folder / "logs.db"))]
    except StateError as error:
        why = "" if isinstance(error.__cause__, OSError) else "; nothing was shipped with this state directory"
        raise CommandError(f"{error}{why}", ExitCode.FAILED) from error
    shippers = [_live(folder) for folder in folders]
    if args.json:
        for path, acknowledged, behind in rows:
            print_json({"file": path, "acknowledged_bytes": acknowledged, "behind_bytes": behind})
        for live in shippers:
            print_json(live)
    else:
        print_table(("file", "acknowledged bytes", "behind bytes"), rows)
        for live in shippers:
            print(_words(live))
    held = any(live["trouble"] or live["unreadable"] or live["dead_letter_bytes"] for live in shippers)
    return ExitCode.FAILED if held else ExitCode.DONE


def folders_of(directory: Path) -> list[Path]:
    """Those of a state directory that somebody ships with: from logs, and from a file of records on to the next."""
    forward = directory / FORWARD
    if not os.path.isfile(forward / "logs.db"):  # noqa: PTH113 - raises nothing
        return [directory]
    return [directory] * os.path.isfile(directory / "logs.db") + [forward]  # noqa: PTH113


def _rows(kept: "list[Checkpoint]") -> list[tuple[str, int, int]]:
    rows = []
    for one in sorted(kept, key=lambda one: str(one.path)):
        try:
            status = one.path.stat()
            size = status.st_size if status.st_ino == one.inode else one.size
        except OSError:
            size = one.size
        rows.append((str(one.path), one.acknowledged, max(0, size - one.acknowledged)))
    return rows


def _live(directory: Path) -> dict[str, Any]:
    from dsobs.logs.lock import owner
    from dsobs.logs.replay import waiting
    from dsobs.logs.status import STATUS_FILE

    live: dict[str, Any] = {
        "process": owner(directory),
        "forwards": directory.name == FORWARD,
        "trouble": None,
        "unreadable": {},
        "behind_seconds": None,
        "dead_letter_bytes": sum(path.stat().st_size for path in waiting(directory)),
    }
    try:
        told = json.loads((directory / STATUS_FILE).read_text())
    except (OSError, ValueError):
        return live
    if live["process"] is None:
        return {**live, "trouble": told["trouble"]}
    return {**live, **told, "told_seconds_ago": round(time.time() - told["at"], 1)}


def _words(live: dict[str, Any]) -> str:
    what = "forwards" if live["forwards"] else "ships"
    lines = [f"nobody {what} now" if live["process"] is None else f"process {live['process']} {what}"]
    if live["behind_seconds"]:
        lines.append(f"{live['behind_seconds']:.0f} s behind")
    if live["trouble"]:
        lines.append(f"held up: {live['trouble'][1]}")
    lines += [f"{path} can't be read: {why}" for path, why in live["unreadable"].items()]
    if live["dead_letter_bytes"]:
        lines.append(f"{live['dead_letter_bytes']} bytes of dead letters")
    return "\n".join(lines)
