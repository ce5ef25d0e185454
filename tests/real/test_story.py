"""The main job against real vLLM: a hang and a crash are seen, paged and repaired."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.real.conftest import SharedVllm
from tests.real.test_left_alone import beside

pytestmark = pytest.mark.real("vllm")
START_SECONDS = 400.0


async def test_real_vllm_hang_is_paged_within_10_s_restarted_and_verified_then_a_crash_is_paged_within_5_s(
    tmp_path: Path, vllm: SharedVllm
) -> None:
    async with beside(tmp_path, vllm) as here:
        await here.start_load()
        await here.start_dsobs()
        await here.until_working()
        old = here.cores()
        stopped = await here.stop_at_work()
        await here.until(lambda: here.paged("EngineHung"), 60, "page")
        page = here.paged("EngineHung")
        assert page is not None
        assert page.at - stopped <= 10.0
        async with here.session.get(f"{here.url}/health") as answer:
            assert answer.status == 200
        await here.until(lambda: any(a == "verified" for _, a, _ in here.events), START_SECONDS, "verified")
        await here.until(lambda: here.paged("EngineHung", "resolve"), 120, "resolve")
        assert not set(old) & set(here.cores())
        assert here.critical() == [page.body["summary"]]
        # A crash now: the supervisor brings the engine back, dsobs only tells.
        restarts = len(here.acted())
        await here.until_working()
        killed = time.time()
        os.kill(here.cores()[0], signal.SIGKILL)
        await here.until(lambda: here.paged("EngineDown"), 60, "page of the crash")
        crash = here.paged("EngineDown")
        assert crash is not None
        assert crash.at - killed <= 5.0
        await here.until(lambda: here.paged("EngineDown", "resolve"), START_SECONDS, "back")
        assert len(here.acted()) == restarts
