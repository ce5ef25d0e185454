"""Draws docs/images: the status page in each state, by a real Chromium.

python -m tests.real.page_pictures [FOLDER]
"""

import asyncio
import sys
from pathlib import Path

from dsobs.api.server import serve
from tests.api.conftest import MemorySource
from tests.real.chromium import Tab, browser
from tests.status_scenes import SCENES

FOLDER = Path(__file__).parents[2] / "docs" / "images"
PICTURES = (
    # Name, scene, width, height, colours.
    ("status-healthy", "healthy", 1100, 1000, "light"),
    ("status-hung", "hung", 1000, 640, "dark"),
    ("status-unknown", "unknown", 1000, 560, "light"),
    ("status-empty", "empty", 1000, 560, "light"),
    ("status-500-alerts", "500-alerts", 1000, 760, "light"),
    ("status-phone", "hung", 390, 640, "dark"),
)


async def _draw(tab: Tab, folder: Path, name: str, scene: str, width: int, height: int, colours: str) -> None:
    source = MemorySource()
    source.shown, source.charted = SCENES[scene]()
    async with serve(source, "127.0.0.1:0", None) as (host, port):
        await tab.scheme(colours)
        await tab.size(width, height, phone=width < 500)
        await tab.go(f"http://{host}:{port}/")
        await tab.until("document.documentElement.dataset.charts === 'drawn'")
        await tab.until("document.getElementById('connection').dataset.connection === 'live'")
        await tab.js("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 300)))")
        (folder / f"{name}.png").write_bytes(await tab.picture())
        await tab.go("about:blank")


async def _lost(tab: Tab, folder: Path) -> None:
    source = MemorySource()
    source.shown, source.charted = SCENES["healthy"]()
    async with serve(source, "127.0.0.1:0", None) as (host, port):
        await tab.scheme("light")
        await tab.size(1000, 320)
        await tab.go(f"http://{host}:{port}/")
        await tab.until("document.getElementById('connection').dataset.connection === 'live'")
    await tab.until("document.getElementById('connection').dataset.connection === 'lost'")
    (folder / "status-lost.png").write_bytes(await tab.picture())


async def draw(folder: Path) -> None:
    """All of them."""
    async with browser() as tab:
        for picture in PICTURES:
            await _draw(tab, folder, *picture)
        await _lost(tab, folder)


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    where.mkdir(parents=True, exist_ok=True)
    asyncio.run(draw(where))
