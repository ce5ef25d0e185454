"""Golden results of `dsobs k8s inject`: `python -m tests.manifests.golden` writes them.

Beside each manifest of tests/data/manifests stands what injecting changes in it, as a difference, and the remarks. The
text of the engine's log handler, which is the same in all of them, is left out.
"""

import difflib
import json
import re
from pathlib import Path

from dsobs.manifests import Options, inject
from dsobs.manifests.sidecar import LOG_CODE, log_code

FOLDER = Path(__file__).parent.parent / "data" / "manifests"
IMAGE = "dsobs:1.0.0"
LEFT_OUT = f"# … the text of {LOG_CODE} …"


def manifests() -> list[Path]:
    """Those of the folder, sorted."""
    return sorted(path for path in FOLDER.iterdir() if path.suffix in (".yaml", ".json"))


def read(path: Path) -> str:
    """With its own line ends."""
    return path.read_bytes().decode()


def shortened(text: str) -> str:
    """Without the handler's text, as a block and as a string of JSON."""
    lines = log_code().rstrip("\n").split("\n")
    block = r"\r?\n".join(rf"(?:[+ ] *)?{re.escape(line)}" if line else r"\+?" for line in lines)
    text = re.sub(block, f"+ {LEFT_OUT}", text)
    return text.replace(json.dumps(log_code(), ensure_ascii=False)[1:-1], LEFT_OUT)


def golden(path: Path) -> str:
    """What is to stand in the golden file of a manifest."""
    text = read(path)
    outcome = inject(text, path.name, Options(image=IMAGE))
    before, after = text.split("\n"), outcome.text.split("\n")
    difference = difflib.unified_diff(before, after, path.name, "injected", lineterm="")
    said = [*(f"remark: {remark}" for remark in outcome.remarks), *(f"problem: {one}" for one in outcome.problems)]
    return shortened("\n".join([*difference, *said])).replace("\r", "␍") + "\n"


def file_of(path: Path) -> Path:
    """The golden file of a manifest."""
    return path.with_suffix(f"{path.suffix}.diff")


if __name__ == "__main__":
    for manifest in manifests():
        file_of(manifest).write_text(golden(manifest), encoding="utf-8")
        print(f"wrote {file_of(manifest)}")
