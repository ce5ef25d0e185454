"""Log shipping delays neither scraping nor alerting nor repair, whatever happens to it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.scene import scene
from tests.acceptance.test_story import FAST
from tests.elasticsearch_stand_in import ElasticsearchStandIn, Fault

LINES = 1_000_000


def arrive(log: Path) -> None:
    """A million lines at once."""
    with log.open("ab") as file:
        for start in range(0, LINES, 10_000):
            file.write(b"".join(b"request %d finished, 128 tokens, 0.73 s\n" % n for n in range(start, start + 10_000)))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 6 MiB at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Until not one byte more fits."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 512)


async def hang_is_paged(tmp_path: Path, state: Path, *, full: bool) -> None:
    log = tmp_path / "app.log"
    async with ElasticsearchStandIn() as elasticsearch, scene(tmp_path) as here:
        elasticsearch.always = Fault(hang=True)
        await here.start_engine()
        await here.start_load()
        settings: dict[str, Any] = {
            "state__directory": str(state),
            "logs__files": f"plain:{log}",
            "logs__elasticsearch__urls": elasticsearch.url,
        }
        await here.start_dsobs(**FAST, **settings)
        await here.until_working()
        arrive(log)
        await here.until(lambda: elasticsearch.in_flight > 0, 60, "a request that hangs")
        if full:
            fill(state)
        stopped = await here.stop_at_work()
        await here.until(lambda: here.paged("EngineHung"), 60, "page")
        page = here.paged("EngineHung")
        assert page is not None
        assert page.at - stopped <= 10.0
        if not full:
            # Repair goes on too; on a full disk it must not, for the ledger can't record it.
            await here.until(lambda: here.paged("EngineHung", "resolve"), 180, "resolve")
        metrics = await _metrics(here)
        assert metrics["dsobs_log_shipper_up"] == 1
        assert metrics["dsobs_loop_errors_total"] == 0


async def _metrics(here: Any) -> dict[str, float]:
    """Sums by name."""
    async with here.session.get(f"http://127.0.0.1:{here.api}/metrics") as answer:
        text = await answer.text()
    found = {"dsobs_loop_errors_total": 0.0}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


@pytest.mark.real("seconds")
async def test_a_hang_is_paged_in_time_while_a_million_lines_wait_for_a_hung_elasticsearch(tmp_path: Path) -> None:
    await hang_is_paged(tmp_path, tmp_path / "state", full=False)


@pytest.mark.real("seconds")
@pytest.mark.fault(4)
async def test_a_hang_is_paged_in_time_while_the_disk_is_full_too(tmp_path: Path) -> None:
    assert os.geteuid() == 0, "mounts a small file system"
    with small_disk(tmp_path / "disk"):
        await hang_is_paged(tmp_path, tmp_path / "disk", full=True)
