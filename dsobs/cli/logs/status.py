"""`dsobs logs status`: how far each file is shipped, asked of the state directory, whether somebody ships or not."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.options import add_config_options, load_config
from dsobs.cli.output import print_json, print_table


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
    try:
        kept = read_checkpoints(directory / "logs.db")
    except StateError as error:
        why = "" if isinstance(error.__cause__, OSError) else "; nothing was shipped with this state directory"
        raise CommandError(f"{error}{why}", ExitCode.FAILED) from error
    rows = []
    for one in sorted(kept, key=lambda one: str(one.path)):
        try:
            size = one.path.stat().st_size if one.path.stat().st_ino == one.inode else one.size
        except OSError:
            size = one.size
        rows.append((str(one.path), one.acknowledged, max(0, size - one.acknowledged)))
    live = _live(directory)
    if args.json:
        for path, acknowledged, behind in rows:
            print_json({"file": path, "acknowledged_bytes": acknowledged, "behind_bytes": behind})
        print_json(live)
    else:
        print_table(("file", "acknowledged bytes", "behind bytes"), rows)
        print(_words(live))
    return ExitCode.FAILED if live["trouble"] or live["dead_letter_bytes"] else ExitCode.DONE


def _live(directory: Path) -> dict[str, Any]:
    from dsobs.logs.lock import owner
    from dsobs.logs.ship import STATUS_FILE

    letters = directory / "dead-letters.ndjson"
    live: dict[str, Any] = {
        "process": owner(directory),
        "trouble": None,
        "behind_seconds": None,
        "dead_letter_bytes": letters.stat().st_size if letters.exists() else 0,
    }
    try:
        told = json.loads((directory / STATUS_FILE).read_text())
    except (OSError, ValueError):
        return live
    if live["process"] is None:
        return {**live, "trouble": told["trouble"]}
    return {**live, **told, "told_seconds_ago": round(time.time() - told["at"], 1)}


def _words(live: dict[str, Any]) -> str:
    lines = ["nobody ships now" if live["process"] is None else f"process {live['process']} ships"]
    if live["behind_seconds"]:
        lines.append(f"{live['behind_seconds']:.0f} s behind")
    if live["trouble"]:
        lines.append(f"held up: {live['trouble'][1]}")
    lines += [f"{path} can't be read: {why}" for path, why in live.get("unreadable", {}).items()]
    if live["dead_letter_bytes"]:
        lines.append(f"{live['dead_letter_bytes']} bytes of dead letters")
    return "\n".join(lines)
