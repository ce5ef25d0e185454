"""A disk that hangs: seen, told, and nothing done that can't be recorded."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.acceptance.scene import Scene, scene


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as stage:
        yield stage


async def test_a_disk_that_hangs_stops_neither_watching_nor_paging_and_repair_waits_for_it(stage: Scene) -> None:
    hanging = stage.folder / "hanging"
    await stage.start_engine()
    await stage.start_dsobs(
        program=("tests.acceptance.run_on_a_bad_disk", str(hanging)), remediation__confirm_hang="2s"
    )
    await stage.start_load()
    await stage.until_working()
    hanging.touch()
    stopped = await stage.stop_at_work()
    await stage.until(lambda: stage.paged("EngineHung"), 60.0, "a page without the disk")
    page = stage.paged("EngineHung")
    assert page is not None
    # 10 s with the disk, and at most 2 s for noticing that it hangs.
    assert page.at - stopped <= 12.0
    await stage.turns(10)
    assert await stage._answers(f"http://127.0.0.1:{stage.api}/livez")
    assert not (await stage.status())["guards"]["ledger_writable"]
    assert stage.acted() == []
    hanging.unlink()
    await stage.until(lambda: stage.happened("verified"), 180.0, "repair once the disk is back")
    await stage.until(lambda: stage.paged("EngineHung", "resolve"), 120.0, "resolved")
    assert stage.happened("restart-begun") == 1
    assert [one.event for one in stage.pages if one.name == "EngineHung"] == ["trigger", "resolve"]
    (incident,) = await stage.incidents()
    assert [e["state"] for e in incident["entries"] if e["kind"] == "restart"] == ["reserved", "done"]


async def test_without_a_state_folder_pages_go_out_from_memory_and_nothing_is_repaired(stage: Scene) -> None:
    folder = stage.folder / "state"
    folder.write_text("no folder")
    await stage.start_engine()
    await stage.start_dsobs(state__directory=str(folder), remediation__confirm_hang="2s")
    await stage.start_load()
    await stage.until_working()
    await stage.stop_at_work()
    await stage.until(lambda: stage.paged("EngineHung"), 60.0, "a page without a disk")
    await stage.turns(8)
    assert not (await stage.status())["guards"]["ledger_writable"]
    assert stage.acted() == []
    assert len(stage.pages) == 1
    told = (stage.folder / "dsobs.log").read_text(encoding="utf-8")
    assert f"nothing is repaired until it is mended and dsobs is restarted: {folder}/state.db: " in told
