"""The faults of log shipping, what must follow from each, and the tests that play them.

python -m tests.log_faults [WORD ...] runs these tests (or those whose id contains one of the words) and writes down
what came of them. docs/reference/log-faults.md is made from both; `make check` says where it is not as the tests are.
"""

import ast
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "data" / "log-faults.json"

FAULTS: dict[int, tuple[str, str]] = {
    1: (
        "SIGKILL in the middle of a bulk request",
        "sent again, 409 is done; nothing lost, nothing twice in one backing index",
    ),
    2: ("power loss, the last checkpoint is not on disk", "duplicates at most, never a gap"),
    3: (
        "torn or corrupt state file",
        "the last transaction that is whole; unreadable: set aside, sent again under the same ids",
    ),
    4: ("disk full", "shipping pauses and says so; alerting and paging go on"),
    5: ("queue full", "reading stops (the file is the queue); what a disk budget takes is counted"),
    6: ("rename and create", "the old file is finished, the new one begun, no duplicates"),
    7: ("copytruncate", "no duplicates; what was cut off unread is read from the copy, without one it is counted"),
    8: ("truncated and regrown past the old offset, also while stopped", "noticed, read from its beginning"),
    9: ("inode used again; same first lines; same place with other bytes", "told apart: two documents"),
    10: (
        "file deleted while output is blocked",
        "read to its end up to `max_held_bytes`; beyond it counted as `rotated_away`",
    ),
    11: ("partial last line, also across a restart", "waits for its end; sent, marked, only when the file is gone"),
    12: ("over-long line", "cut, marked, counted; the file goes on"),
    13: ("not UTF-8, NUL, malformed JSON", "shipped as text with an error field"),
    14: (
        "200 with 201, 429 and 400 mixed",
        "only the 429 again, the 400 to the dead letters; more than 5 % refused: holds",
    ),
    15: ("all items 409", "success"),
    16: ("200 with a truncated or unreadable body", "sent again, not acknowledged"),
    17: ("time-out after the server committed", "one document in a backing index"),
    18: ("413", "split; a single document too large is a dead letter"),
    19: ("401, 403, 404, blocked index", "held and told, not dropped"),
    20: ("Elasticsearch away", "bounded memory, back-off with jitter, drained in order afterwards"),
    21: ("Elasticsearch slow or refusing", "fewer requests in flight"),
    22: ("failure store used", "counted as quarantined"),
    35: ("SIGTERM with a backlog", "bounded drain, checkpoint, the rest after the next start"),
}
"""Number → (fault, what must follow)."""

REAL = frozenset({1, 14, 15, 17, 18, 19, 20, 21})
"""Those in which the server's part matters: at least one of their tests has a real Elasticsearch."""


@dataclass(frozen=True)
class Played:
    """One that plays faults."""

    file: str
    name: str
    faults: tuple[int, ...]

    @property
    def id(self) -> str:
        """As pytest names it, without parameters."""
        return f"{self.file}::{self.name}"


def played() -> list[Played]:
    """All that are marked, by file and place."""
    return [test for path in sorted((ROOT / "tests").rglob("test_*.py")) for test in _in_file(path)]


def _in_file(path: Path) -> Iterator[Played]:
    text = path.read_text(encoding="utf-8")
    if "mark.fault(" not in text:
        return
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    numbers = tuple(ast.literal_eval(one) for one in mark.args)
                    yield Played(str(path.relative_to(ROOT)), node.name, numbers)


def results() -> dict[str, Any]:
    """As last written down."""
    said: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return said


def problems(found: Sequence[Played], said: dict[str, Any]) -> list[str]:
    """What speaks against the table: faults without a test, tests without a good result."""
    wrong = []
    for number in FAULTS:
        playing = [test for test in found if number in test.faults]
        if not playing:
            wrong.append(f"fault {number} has no test")
        elif number in REAL and not any(test.file.startswith("tests/real/") for test in playing):
            wrong.append(f"fault {number} has no test with a real server")
    wrong += [f"{test.id}: there is no fault {n}" for test in found for n in test.faults if n not in FAULTS]
    wrong += [f"{test.id}: {said['tests'].get(test.id, 'not run')}" for test in found if not _passed(test, said)]
    return wrong


def _passed(test: Played, said: dict[str, Any]) -> bool:
    return str(said["tests"].get(test.id, "")).startswith("passed")


def page() -> str:
    """docs/reference/log-faults.md."""
    found, said = played(), results()
    lines = [
        "# Faults of log shipping",
        "",
        "What can go wrong between a log file and Elasticsearch, what dsobs does then, and which tests play it.",
        "Those in `real/` have a real Elasticsearch. Made by `make generate` from the tests; results of",
        f"`python -m tests.log_faults` on {said['on']}, {said['with']}.",
        "",
        "| | fault | what follows | played by | result |",
        "|---|---|---|---|---|",
    ]
    for number, (fault, follows) in FAULTS.items():
        playing = [test for test in found if number in test.faults]
        names = "<br>".join(f"`{test.file.removeprefix('tests/')}` {_words(test.name)}" for test in playing)
        told = "<br>".join(said["tests"].get(test.id, "not run") for test in playing)
        lines.append(f"| {number} | {fault} | {follows} | {names} | {told} |")
    return "\n".join(lines) + "\n"


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def run(words: Sequence[str]) -> int:
    """Runs those whose id contains one of `words` (none: all), and writes down what came of each; 1 where the table is
    not good now."""
    found = played()
    wanted = [test.id for test in found if not words or any(word in test.id for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "real or not real", f"--junitxml={report}"]
        subprocess.run([*command, *wanted], cwd=ROOT, check=False)
        counted: dict[str, list[str]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            file = case.attrib["classname"].replace(".", "/") + ".py"
            outcome = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "passed")
            counted.setdefault(f"{file}::{case.attrib['name'].partition('[')[0]}", []).append(outcome)
    told = {
        name: f"passed {len(outcomes)}" if set(outcomes) == {"passed"} else ", ".join(sorted(set(outcomes)))
        for name, outcomes in counted.items()
    }
    known = {test.id for test in found}
    told = {name: how for name, how in {**(results()["tests"] if words else {}), **told}.items() if name in known}
    RESULTS.write_text(
        json.dumps(
            {
                "on": datetime.now(UTC).strftime("%Y-%m-%d"),
                "with": f"Python {platform.python_version()}, Elasticsearch 9.2.0 and 8.19.5",
                "tests": dict(sorted(told.items())),
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    wrong = problems(found, results())
    print("\n".join(wrong) or f"{len(FAULTS)} faults, {len(found)} tests, all passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
