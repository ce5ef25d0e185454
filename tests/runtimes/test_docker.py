"""What the Docker runtime makes of answers, against a stand-in for the daemon; the real one is in tests/real."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from dsobs.config.models import RuntimeSettings, Target
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RuntimeRefused
from dsobs.runtimes import docker, select
from dsobs.runtimes.docker import DockerRuntime, Stops, demultiplexed
from dsobs.runtimes.docker_daemon import negotiated

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
START = "2026-11-24T01:00:00.123456789Z"


def container(**state: object) -> dict[str, object]:
    return {
        "Id": "c0ffee",
        "Name": "/engine",
        "RestartCount": 0,
        "HostConfig": {"RestartPolicy": {"Name": "always"}},
        "State": {
            "Running": True,
            "Restarting": False,
            "Paused": False,
            "OOMKilled": False,
            "Pid": 1,
            "ExitCode": 0,
            "StartedAt": START,
            "FinishedAt": "0001-01-01T00:00:00Z",
            **state,
        },
    }


class Daemon:
    """Answers as it is told."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "docker.sock"
        self.inspect: object = container()
        self.restart: Handler | None = None
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if request.path == "/version":
            return web.json_response({"ApiVersion": "1.51", "MinAPIVersion": "1.24"})
        if request.path.endswith("/restart") and self.restart is not None:
            return await self.restart(request)
        if request.path.endswith("/json"):
            return web.json_response(self.inspect)
        if request.path.endswith("/events"):
            return web.Response()
        if request.path.endswith("/logs"):
            return web.json_response({"message": "configured logging driver does not support reading"}, status=501)
        return web.json_response({"message": "page not found"}, status=404)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[DockerRuntime]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket)).start()
        runtime = DockerRuntime(
            RuntimeSettings(container="engine", docker_host=f"unix://{self.socket}", timeout=1.0),
            proc=self.socket.parent,
        )
        try:
            yield runtime
        finally:
            await runtime.close()
            await runner.cleanup()


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path)


async def test_newest_version_that_both_know_is_spoken(daemon: Daemon) -> None:
    async with daemon.serving() as runtime:
        assert isinstance(await runtime.view(), RuntimeView)
        assert daemon.asked[:2] == ["/version", "/v1.41/containers/engine/json"]


async def test_cpu_time_that_is_not_told_is_unknown_and_not_zero(daemon: Daemon) -> None:
    async with daemon.serving() as runtime:
        view = await runtime.view()
        assert isinstance(view, RuntimeView)
        assert (view.cpu_seconds, view.pids) == (None, ())


async def test_container_between_two_tries_of_its_policy_is_not_running(daemon: Daemon) -> None:
    daemon.inspect = container(Restarting=True, ExitCode=1, FinishedAt="2026-11-24T01:00:05Z")
    async with daemon.serving() as runtime:
        view = await runtime.view()
        assert isinstance(view, RuntimeView)
        assert (view.running, view.exit_code, view.planned_stop) == (False, 1, None)


@pytest.mark.parametrize("code", [0, 143])
async def test_exit_code_alone_never_makes_a_stop_planned(daemon: Daemon, code: int) -> None:
    daemon.inspect = container(Running=False, ExitCode=code, FinishedAt="2026-11-24T01:00:05Z")
    async with daemon.serving() as runtime:
        view = await runtime.view()
        assert isinstance(view, RuntimeView)
        assert (view.exit_code, view.planned_stop) == (code, None)


@pytest.mark.parametrize("inspect", [{}, [], "x", {"State": {}}, container(StartedAt="yesterday")])
async def test_answer_that_makes_no_sense_is_unknown(daemon: Daemon, inspect: object) -> None:
    daemon.inspect = inspect
    async with daemon.serving() as runtime:
        assert isinstance(await runtime.view(), Unknown)
        with contextlib.suppress(RuntimeRefused):
            await runtime.restart(grace_seconds=0.0, expect_started_at=1.0)
            pytest.fail("restarted what it could not read")


@pytest.mark.parametrize("status", [304, 400, 404, 409])
async def test_refusal_by_the_daemon_is_a_refusal_with_its_words(daemon: Daemon, status: int) -> None:
    async def restart(_: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "not now"}, status=status)

    daemon.restart = restart
    async with daemon.serving() as runtime:
        with pytest.raises(RuntimeRefused, match=r"not now|status 304"):
            await runtime.restart(grace_seconds=1.0, expect_started_at=None)


@pytest.mark.parametrize(
    ("after", "error", "words"),
    [
        (container(), RuntimeRefused, "runs on"),
        (container(Running=False, FinishedAt="2026-11-24T01:00:05Z"), ConnectionError, "is stopped"),
        ({}, ConnectionError, "can't be read"),
    ],
)
async def test_failure_of_the_daemon_is_a_refusal_only_if_nothing_changed(
    daemon: Daemon, after: object, error: type[Exception], words: str
) -> None:
    async def restart(_: web.Request) -> web.StreamResponse:
        daemon.inspect = after
        return web.json_response({"message": "no device"}, status=500)

    daemon.restart = restart
    async with daemon.serving() as runtime:
        with pytest.raises(error, match=f"no device.*{words}"):
            await runtime.restart(grace_seconds=1.0, expect_started_at=None)


async def test_restart_that_is_not_answered_has_an_unknown_outcome(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "RESTART_SLACK_SECONDS", -0.7)
    never = asyncio.Event()

    async def restart(_: web.Request) -> web.StreamResponse:
        await never.wait()
        return web.Response()

    daemon.restart = restart
    async with daemon.serving() as runtime:
        with pytest.raises(TimeoutError):
            await runtime.restart(grace_seconds=0.0, expect_started_at=None)
        never.set()


async def test_connection_cut_in_a_restart_has_an_unknown_outcome(daemon: Daemon) -> None:
    async def restart(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    daemon.restart = restart
    async with daemon.serving() as runtime:
        with pytest.raises(ConnectionError, match="did not come"):
            await runtime.restart(grace_seconds=0.0, expect_started_at=None)


async def test_grace_is_rounded_up_to_the_daemons_whole_seconds(daemon: Daemon) -> None:
    asked: list[str] = []

    async def restart(request: web.Request) -> web.StreamResponse:
        asked.append(request.query["t"])
        return web.Response(status=204)

    daemon.restart = restart
    async with daemon.serving() as runtime:
        result = await runtime.restart(grace_seconds=1.2, expect_started_at=None)
        assert asked == ["2"]
        assert "restart policy: always" in result.detail


async def test_logging_driver_that_cannot_be_read_is_unknown(daemon: Daemon) -> None:
    async with daemon.serving() as runtime:
        assert await runtime.log_tail(5) == Unknown("Docker: configured logging driver does not support reading")


async def test_settings_without_container_or_with_another_scheme_are_unknown() -> None:
    settings = RuntimeSettings(name="docker")
    assert isinstance(await select(settings, Target()), Unknown)
    ssh = settings.model_copy(update={"container": "engine", "docker_host": "ssh://host"})
    assert isinstance(await select(ssh, Target()), Unknown)


STOP = [(1.0, "kill", "15"), (2.0, "die", ""), (2.1, "stop", "")]


@pytest.mark.parametrize(
    ("events", "planned"),
    [
        ([(2.0, "die", "")], None),
        (STOP, "docker kill event, signal 15"),
        (
            [(1.0, "kill", "15"), (11.0, "kill", "9"), (11.1, "die", ""), (11.2, "stop", "")],
            "docker kill event, signal 15",
        ),
        ([(1.0, "kill", "10"), (2.0, "die", "")], None),
        ([(1.0, "kill", "15"), (700.0, "die", "")], None),
        ([(1.0, "oom", ""), (2.0, "die", "")], None),
        ([*STOP, (2.2, "start", ""), (2.3, "restart", "")], "docker kill event, signal 15"),
        ([*STOP, (2.2, "start", ""), (9.0, "die", "")], None),
        ([(2.0, "die", ""), (2.1, "stop", "")], "docker stop event"),
        ([(0.1, "stop", ""), (2.0, "die", "")], None),
    ],
)
def test_stop_is_planned_only_if_somebody_was_seen_to_ask_for_it(
    events: list[tuple[float, str, str]], planned: str | None
) -> None:
    stops = Stops()
    for at, action, signal in events:
        stops.take(at, action, {"signal": signal}, own=False)
    assert stops.of(stops.died_at, now=stops.died_at) == planned


def test_own_restart_is_nobodys_stop() -> None:
    stops = Stops()
    for at, action, signal in [*STOP, (2.2, "start", ""), (2.3, "restart", "")]:
        stops.take(at, action, {"signal": signal}, own=True)
    assert stops.of(2.0, now=3.0) is None
    assert stops.starts == [2.2]


def test_end_whose_events_were_not_seen_is_nobodys() -> None:
    stops = Stops()
    for at, action, signal in STOP:
        stops.take(at, action, {"signal": signal}, own=False)
    assert stops.of(500.0, now=501.0) is None


def frame(stream: int, payload: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


@given(st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=300)), max_size=20))
def test_frames_give_back_what_was_written(frames: list[tuple[int, bytes]]) -> None:
    body = b"".join(frame(stream, payload) for stream, payload in frames)
    assert demultiplexed(body) == b"".join(payload for _, payload in frames)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_frame_that_is_cut_off_gives_what_is_there(payload: bytes, length: int) -> None:
    assert payload.startswith(demultiplexed(frame(1, payload)[: 8 + length]))


@given(st.text(min_size=1, max_size=300))
def test_output_of_a_terminal_is_taken_as_it_is(text: str) -> None:
    body = text.encode()
    if body[0] > 2:
        assert demultiplexed(body) == body


@given(st.binary(max_size=100))
def test_any_bytes_are_taken_without_an_error(body: bytes) -> None:
    demultiplexed(body)


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [("1.41", "1.12", "1.41"), ("1.51", "1.24", "1.41"), ("1.52", "1.44", "1.44"), ("1.40", "1.12", "1.40")],
)
def test_version_is_between_what_the_daemon_speaks(newest: str, oldest: str, spoken: str) -> None:
    assert negotiated(newest, oldest) == spoken
