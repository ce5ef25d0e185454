"""The dashboards by Grafana's published schema: strictly read by its Foundation SDK, fields of panels' plugins and all.

Not Grafana itself, which can't be had here; the SDK is generated from the same schema.
"""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.real("servers")
FOLDER = Path(__file__).parents[2] / "dashboards" / "grafana"
BUILD_SECONDS = 1800.0


@pytest.fixture(scope="module")
def reader() -> str:
    script = Path(__file__).parent / "grafana" / "build.sh"
    built = subprocess.run(["bash", str(script)], check=True, stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS)
    return built.stdout.strip()


def problems(reader: str, *paths: Path) -> str:
    read = subprocess.run([reader, *paths], check=False, capture_output=True, text=True, timeout=60)
    assert (read.returncode == 0) == (read.stdout == ""), read.stderr
    return read.stdout


def test_every_dashboard_is_as_the_schema_has_it(reader: str) -> None:
    paths = sorted(FOLDER.glob("*.json"))
    assert len(paths) >= 6
    assert problems(reader, *paths) == ""


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        ('"graphTooltip": 1', '"graphTooltip": "x"', "cannot unmarshal string"),
        ('"fieldConfig"', '"fieldConfg"', "unexpected field 'fieldConfg'"),
        ('"legendFormat"', '"legendFormt"', "unexpected field 'legendFormt'"),
        ('"showPoints"', '"showPonts"', "unexpected field 'showPonts'"),
    ],
)
def test_what_the_schema_does_not_have_is_found(reader: str, tmp_path: Path, good: str, bad: str, problem: str) -> None:
    text = (FOLDER / "gpu.json").read_text(encoding="utf-8")
    assert good in text
    path = tmp_path / "gpu.json"
    path.write_text(text.replace(good, bad), encoding="utf-8")
    assert problem in problems(reader, path)
