"""The output of an engine under `dsobs supervise --log-file` is shipped once, over rotations of the file and a kill."""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import named, until

PARTS, LINES = 6, 2000
"""A file takes a little more than a part: in most parts it is rotated once, and its predecessor replaced."""
ENGINE = """
import sys, time
from pathlib import Path
for part in range(int(sys.argv[2])):
    while not Path(sys.argv[1], str(part)).exists():
        time.sleep(0.01)
    for number in range(part * int(sys.argv[3]), (part + 1) * int(sys.argv[3])):
        print("line", number, "x" * 40, flush=True)
"""


async def start(*words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dsobs.cli", *words, stdout=asyncio.subprocess.DEVNULL
    )


async def test_the_output_of_a_supervised_engine_arrives_once_over_rotations_and_a_kill(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    async with ElasticsearchStandIn() as server, contextlib.AsyncExitStack() as stack:

        async def begin(*words: str) -> asyncio.subprocess.Process:
            process = await start(*words)
            stack.push_async_callback(_end, process)
            return process

        ship = (
            *("logs", "ship", "--from", f"plain:{log}", "--to", server.url, "--index", "logs"),
            *("--state", str(tmp_path / "state")),
        )
        engine = ("--", sys.executable, "-c", ENGINE, str(tmp_path), str(PARTS), str(LINES))
        shipper = await begin(*ship)
        await begin(
            *("supervise", "--socket", str(tmp_path / "s.sock"), "--restart", "never"),
            *("--log-file", str(log), "--log-max-bytes", "110000", *engine),
        )
        for part in range(PARTS):
            (tmp_path / str(part)).touch()
            if part % 2:
                await until(lambda part=part: len(server.documents) > part * LINES, 60)  # type: ignore[misc]
                shipper.send_signal(signal.SIGKILL)
                await shipper.wait()
                shipper = await begin(*ship)
            await until(lambda part=part: len(server.documents) >= (part + 1) * LINES, 60)  # type: ignore[misc]
        assert (tmp_path / "engine.log.1").exists()
        # The supervisor's own words stand there too.
        texts = [" ".join(text.split()[:2]) for text in server.messages() if text.startswith("line ")]
        assert sorted(texts, key=lambda text: int(text.split()[1])) == named(*range(PARTS * LINES))


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await asyncio.wait_for(process.wait(), 30)
