"""An engine behind Docker's own port forwarder, which accepts connections whether anybody listens behind it or not."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsobs.collectors.exchange import open_session
from dsobs.collectors.health import HealthCheck
from dsobs.collectors.scrape import Scraper
from dsobs.config.models import Target
from dsobs.model.clock import SteadyClock
from dsobs.model.observation import Failure
from dsobs.simulator.process import free_port
from tests.acceptance.scene import SIMULATOR, Scene, scene
from tests.real import docker

pytestmark = pytest.mark.real("seconds")
LOAD_SECONDS = 15
PROXY = Path("/usr/sbin/docker-proxy")


@contextmanager
def published(port: int) -> Iterator[str]:
    """The address at which docker-proxy forwards to `port`, as it does for `docker run -p`."""
    docker.install()
    outside = free_port()
    ready, told = os.pipe()
    # Its fourth descriptor is where it tells dockerd that it listens ("0"), or why it doesn't.
    words = f"exec 3>&{told}; exec {PROXY} -proto tcp -host-ip 127.0.0.1 -host-port {outside}"
    forwarder = subprocess.Popen(
        ["bash", "-c", f"{words} -container-ip 127.0.0.1 -container-port {port}"],
        pass_fds=(told,),
        stderr=subprocess.DEVNULL,
    )
    os.close(told)
    try:
        with os.fdopen(ready, "rb") as answer:
            assert answer.read(1) == b"0", answer.read()
        yield f"http://127.0.0.1:{outside}"
    finally:
        forwarder.terminate()
        forwarder.wait()


async def test_dockers_forwarder_before_a_closed_port_is_closed_and_not_a_server_that_stands_still() -> None:
    with published(free_port()) as url:
        target = Target(url=url)
        async with open_session(target) as session:
            for _ in range(10):
                scrape = await Scraper(session, target, "/metrics", SteadyClock()).scrape()
                health = await HealthCheck(session, target, SteadyClock()).check()
                assert (scrape.failure, scrape.answered, health.failure) == (Failure.CLOSED, False, Failure.CLOSED)


async def test_a_crash_behind_a_published_port_is_paged_and_its_new_instance_loads_undisturbed(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine(*SIMULATOR, "--load-seconds", str(LOAD_SECONDS), ready=180.0)
        with published(here.port) as url:
            await here.start_dsobs(
                target__url=url,
                hang__max_threshold="8s",
                hang__unresponsive_after="8s",
                remediation__down_grace="2s",
                gpu__enabled="false",
            )
            await here.until(lambda: here.happened("engine-ready"), 90.0, "ready")
            os.kill(here.api_server(), signal.SIGKILL)
            await here.until(lambda: here.paged("EngineDown"), 60.0, "paged")
            await here.until(lambda: _starting(here), 60.0, "seen as starting")
            await here.until(lambda: here.paged("EngineDown", "resolve"), LOAD_SECONDS + 120.0, "up again")
        assert [page.name for page in here.pages if page.event == "trigger"] == ["EngineDown"], here.story()
        # The supervisor started it again; dsobs leaves it alone while it loads, longer than any threshold.
        assert here.acted() == []


async def _starting(here: Scene) -> bool:
    view = (await here.status())["view"]
    return view["starting_since"] is not None and view["unresponsive_since"] is None
