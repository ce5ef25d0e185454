"""The main job, end to end, against the simulator: real processes, real sockets, real signals."""

import asyncio
import functools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.scene import SIMULATOR, scene
from tests.otlp_receiver import OtlpReceiver

FAST: dict[str, Any] = {"remediation__confirm_hang": "3s", "runtime__stop_grace": "2s"}


def _reached(at: float) -> bool:
    return time.time() >= at


def _gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _files(folder: str) -> set[str]:
    return {file.name for file in Path(folder).iterdir()}


async def test_hang_under_load_is_paged_within_10_s_restarted_once_and_exported_as_a_trace(tmp_path: Path) -> None:
    async with scene(tmp_path) as here, OtlpReceiver() as receiver:
        await here.start_engine()
        await here.start_load()
        await here.start_dsobs(otlp__endpoint=receiver.url, otlp__interval="1s", **FAST)
        await here.until_working()
        old = here.cores()
        stopped = await here.stop_at_work()
        await here.until(lambda: here.paged("EngineHung"), 60, "page")
        page = here.paged("EngineHung")
        assert page is not None
        assert page.at - stopped <= 10.0
        await here.until(lambda: here.paged("EngineHung", "resolve"), 180, "resolve")
        await here.until(lambda: any(a == "incident-closed" for _, a, _ in here.events), 180, "closed")
        (incident,) = await here.incidents()
        steps = [f"{e['kind']} {e['state']}" for e in incident["entries"]]
        assert steps == [
            "incident opened",
            "evidence done",
            "restart reserved",
            "restart done",
            "verify done",
            "incident closed",
        ]
        assert _gone(old)
        assert here.critical() == [page.body["summary"]]
        folder = next(e["detail"]["folder"] for e in incident["entries"] if e["kind"] == "evidence")
        assert _files(folder) == {"recording.jsonl.gz", "state.json", "engine.log"}
        assert (await here.status())["guards"]["restarts_24h"] == 1
        await here.until(lambda: any(span.name == "incident" for span in receiver.spans()), 60, "the trace")
        assert [span.name for span in receiver.spans()] == ["evidence", "restart", "verify", "incident"]
        assert {span.trace_id for span in receiver.spans()} == {receiver.spans()[-1].trace_id}
        (latency,) = receiver.metric("gen_ai.server.time_to_first_token")["histogram"]["dataPoints"]
        assert int(latency["count"]) > 0


async def test_observe_pages_and_says_what_enforce_would_do_and_does_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine()
        await here.start_load()
        await here.start_dsobs(enforce=False, **FAST)
        await here.until_working()
        pid = await here.stop_at_work() and here.cores()
        await here.until(lambda: any("would restart" in m for _, _, m in here.events), 120, "would restart")
        assert here.paged("EngineHung") is not None
        assert here.acted() == []
        assert here.cores() == pid


async def test_killed_core_is_paged_within_5_s_and_the_supervisor_brings_the_engine_back(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine(*SIMULATOR, "--load-seconds", "3")
        await here.start_load()
        await here.start_dsobs(**FAST)
        await here.until_working()
        killed = time.time()
        os.kill(here.cores()[0], signal.SIGKILL)
        await here.until(lambda: here.paged("EngineDown"), 60, "page")
        page = here.paged("EngineDown")
        assert page is not None
        assert page.at - killed <= 5.0
        await here.until(lambda: here.paged("EngineDown", "resolve"), 120, "resolve")
        assert here.acted() == []


async def test_hang_while_idle_is_found_by_two_failed_probes(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine()
        await here.start_dsobs(hang__idle_after="2s", hang__idle_probe_interval="4s", hang__probe_timeout="1s", **FAST)
        await here.until(lambda: any(a == "probe-answered" for _, a, _ in here.events), 60, "a first answer")
        here.stop_core()
        await here.until(lambda: here.paged("EngineHung"), 120, "page")
        await here.until(lambda: here.paged("EngineHung", "resolve"), 180, "resolve")
        assert len([m for m in here.acted() if "restarting" in m]) == 1


@pytest.mark.real("seconds")
async def test_hang_while_idle_is_paged_within_90_s_at_the_default_settings(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine()
        await here.start_dsobs(enforce=False)
        await here.until(lambda: any(a == "probe-answered" for _, a, _ in here.events), 60, "a first answer")
        stopped = here.stop_core()
        await here.until(lambda: here.paged("EngineHung"), 150, "page")
        page = here.paged("EngineHung")
        assert page is not None
        assert page.at - stopped <= 90.0


async def test_with_no_configuration_nothing_is_sent_changed_or_paged(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine()
        await here.start_load()
        await here.start_dsobs(enforce=False, notifiers__webhook__url="", remediation__mode="")
        await here.until_working()
        await here.stop_at_work()
        await here.turns(12)
        told = "\n".join(message for _, _, message in here.events)
        assert "nobody is paged (notifiers)" in told
        assert "synthetic requests: none are sent (hang.probe)" in told
        assert "repair: observe" in told
        assert "synthetic request of one token" not in told
        assert here.pages == []


async def test_sigterm_to_supervise_is_information_only(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine()
        await here.start_load()
        await here.start_dsobs(**FAST)
        await here.until_working()
        assert here.engine is not None
        here.engine.send_signal(signal.SIGTERM)
        await asyncio.wait_for(here.engine.wait(), 60)
        await here.turns(12)
        view = (await here.status())["view"]
        assert "SIGTERM" in view["planned_stop"]
        assert here.critical() == []
        assert here.acted() == []


async def test_engine_replaced_by_another_model_under_supervise_is_information_only(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine()
        load = await here.start_load()
        await here.start_dsobs(**FAST)
        await here.until_working()
        assert here.engine is not None
        here.engine.send_signal(signal.SIGTERM)
        await asyncio.wait_for(here.engine.wait(), 60)
        load.send_signal(signal.SIGTERM)
        await here.start_engine(*SIMULATOR, "--model-name", "another", "--block-size", "32", "--load-seconds", "4")
        await here.start_load()
        await here.until_working()
        await here.turns(8)
        view = (await here.status())["view"]
        assert [engine["key"][0] for engine in view["engines"]] == ["another"]
        assert (view["planned_stop"], view["down_since"]) == (None, None)
        assert here.critical() == []
        assert here.acted() == []


async def test_a_silence_keeps_the_page_back_and_the_kill_switch_file_the_restart(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        token = tmp_path / "token"
        token.write_text("s3cret\n")
        await here.start_engine()
        await here.start_load()
        await here.start_dsobs(api__control_token=f"file:{token}", **FAST)
        await here.until_working()
        body = {"matchers": ["alertname=EngineHung"], "duration": "10m"}
        url = f"http://127.0.0.1:{here.api}/api/v1/silences"
        async with here.session.post(url, json=body, headers={"Authorization": "Bearer s3cret"}) as answer:
            assert answer.status == 201
        (tmp_path / "kill").touch()
        await here.stop_at_work()
        await here.until(lambda: any(a == "alert-firing" for _, a, _ in here.events), 90, "firing")
        await here.turns(6)
        assert here.critical() == []
        assert here.acted() == []
        async with here.session.get(url) as answer:
            (silence,) = (await answer.json())["data"]
        words = ("-m", "dsobs.cli", "silence", "expire", silence["id"])
        flags = ("--listen", f"127.0.0.1:{here.api}", "--set", f"api.control_token=file:{token}")
        ended = await asyncio.create_subprocess_exec(sys.executable, *words, *flags)
        assert await ended.wait() == 0
        await here.until(lambda: here.paged("EngineHung"), 60, "a page for what still fires")


async def test_a_silence_that_ends_while_dsobs_is_away_leaves_its_alert_to_be_paged(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        token = tmp_path / "token"
        token.write_text("s3cret\n")
        settings: dict[str, Any] = {"api__control_token": f"file:{token}", "enforce": False}
        await here.start_engine()
        await here.start_load()
        await here.start_dsobs(**settings)
        await here.until_working()
        await here.stop_at_work()
        body, headers = {"matchers": ["alertname=EngineHung"], "duration": "22s"}, {"Authorization": "Bearer s3cret"}
        url = f"http://127.0.0.1:{here.api}/api/v1/silences"
        async with here.session.post(url, json=body, headers=headers) as answer:
            assert answer.status == 201
        until = time.time() + 22.0
        await here.until(lambda: any(a == "alert-firing" for _, a, _ in here.events), 21, "firing")
        assert here.dsobs is not None
        here.dsobs.kill()
        await here.dsobs.wait()
        assert here.critical() == []
        await here.until(functools.partial(_reached, until), 30, "the silence has ended")
        await here.start_dsobs(**settings)
        await here.until(lambda: here.paged("EngineHung"), 90, "a page for what still fires")
        await here.turns(3)
        assert len(here.critical()) == 1


@pytest.mark.parametrize("moments", [(2.0, 6.0), pytest.param((9.5, 12.5), marks=pytest.mark.real("seconds"))])
async def test_dsobs_killed_in_the_middle_of_an_incident_restarts_the_engine_once(
    tmp_path: Path, moments: tuple[float, float]
) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine()
        await here.start_load()
        await here.start_dsobs(**FAST)
        await here.until_working()
        stopped = await here.stop_at_work()
        for moment in moments:
            await here.until(functools.partial(_reached, stopped + moment), 30, "the moment")
            assert here.dsobs is not None
            here.dsobs.kill()
            await here.dsobs.wait()
            await here.start_dsobs(**FAST)
        await here.until(lambda: here.paged("EngineHung"), 120, "page")
        await here.until(lambda: here.paged("EngineHung", "resolve"), 180, "resolve")
        log = (tmp_path / "engine.log").read_text(errors="replace")
        assert log.count("restart requested") == 1


async def test_401_on_the_probe_pages_a_hang_without_its_word_and_never_restarts(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine(*SIMULATOR, "--api-key", "k3y")
        await here.start_load(4, "--api-key", "k3y")
        await here.start_dsobs(hang__idle_after="2s", hang__idle_probe_interval="4s", **FAST)
        await here.until_working()
        await here.turns(4)
        assert here.critical() == []
        await here.stop_at_work()
        await here.until(lambda: here.paged("EngineHung"), 120, "page")
        page = here.paged("EngineHung")
        assert page is not None
        assert "probe unavailable" in page.body["annotations"]["description"]
        await here.turns(8)
        assert here.acted() == []


async def test_sleep_is_no_hang(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.start_engine(*SIMULATOR, "--dev-mode")
        await here.start_load()
        await here.start_dsobs(hang__idle_after="2s", hang__idle_probe_interval="4s", **FAST)
        await here.until_working()
        async with here.session.post(f"{here.url}/sleep?level=1") as answer:
            assert answer.status == 200
        await here.turns(14)
        assert (await here.status())["view"]["asleep"]
        assert here.critical() == []
        assert here.acted() == []
