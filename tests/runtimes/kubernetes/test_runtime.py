"""The runtime beside a stand-in for kubelet and for the API server; kubelet itself is in tests/real."""

import asyncio
import contextlib
import copy
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dsobs.config.models import Remediation, RuntimeSettings, Target
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RestartWithoutEffect, RuntimeHeld, RuntimeRefused
from dsobs.runtimes import select
from dsobs.runtimes.control_folder import ControlFolder, Kind
from dsobs.runtimes.kubernetes import KubernetesRuntime, open_runtime, replacing
from dsobs.runtimes.kubernetes import runtime as module
from dsobs.runtimes.kubernetes.identity import Identity
from dsobs.runtimes.process import ProcessRuntime
from tests.contracts.runtime_contract import until
from tests.kubernetes_stand_in import ACTING_RIGHTS, ALL_RIGHTS, NAMESPACE, POD, StandIn, pod_json
from tests.runtimes import probe_cases
from tests.runtimes.kubernetes.accounts import api_of


@pytest.fixture(autouse=True)
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "CHECK_SECONDS", 30.0)


class Kubelet:
    """Ends the engine when it has seen a request, and starts another."""

    def __init__(self, folder: Path, server: StandIn) -> None:
        self.folder = ControlFolder(folder)
        self.server = server
        self.port = 0
        self.page = 1000.0
        """Start of the engine by its own page."""
        self.seen: list[Any] = []
        """The requests that it acted on."""
        self.deaf = False
        """Its probe reads no requests."""
        self.closes_port = True
        self.tells = True
        """It writes to the API server."""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            request = None if self.deaf else self.folder.read(Kind.RESTART)
            if request is None or not time.time() < request.expires_at <= time.time() + 60:
                continue
            self.seen.append(request)
            if self.closes_port:
                await self.stop()
                await asyncio.sleep(0.1)
                await self.start()
            self.page += 100
            if self.tells and self.server.pod is not None:
                pod = copy.deepcopy(self.server.pod)
                pod["status"]["containerStatuses"][0] |= {
                    "restartCount": 1,
                    "containerID": "containerd://bbbb",
                    "state": {"running": {"startedAt": "2026-11-23T11:00:00Z"}},
                }
                self.server.change(pod)


class World:
    def __init__(self, folder: Path, server: StandIn, kubelet: Kubelet) -> None:
        self.folder = folder
        self.server = server
        self.kubelet = kubelet
        self.runtimes: list[KubernetesRuntime] = []

    def runtime(self, token: str | None = "full", **settings: Any) -> KubernetesRuntime:
        control = ControlFolder(self.folder)
        control.take()
        api = api_of(self.server.url, token, Identity(NAMESPACE, POD)) if token else Unknown("no token")
        made = KubernetesRuntime(
            RuntimeSettings(control_folder=self.folder, **settings),
            Target(url=f"http://127.0.0.1:{self.kubelet.port}"),
            control,
            api,
        )
        made.page_started_at = lambda: self.kubelet.page
        self.runtimes.append(made)
        return made

    async def seeing(self, **settings: Any) -> KubernetesRuntime:
        """One that has seen the pod."""
        made = self.runtime(**settings)
        await until(made.view, lambda view: isinstance(view, RuntimeView) and view.running is not None)
        return made

    def change(self, **status: Any) -> dict[str, Any]:
        pod = pod_json(**status)
        self._reads(pod)
        return pod

    def _reads(self, pod: dict[str, Any]) -> None:
        pod["spec"]["containers"][0]["livenessProbe"]["exec"]["command"][2] = f"... {self.folder}/restart 60"

    def asked(self) -> bool:
        return (self.folder / "restart").exists()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    folder = tmp_path / "control"
    folder.mkdir()
    server = StandIn()
    server.tokens |= {
        "act": ACTING_RIGHTS,
        "full": ALL_RIGHTS,
        "get": frozenset({("get", "pods")}),
        "none": frozenset(),
    }
    server.others[("deployments", "vllm")] = {"kind": "Deployment", "metadata": {"name": "vllm"}, "spec": {}}
    server.others[("deployments", "vllm")]["status"] = {"replicas": 1, "updatedReplicas": 1}
    server.others[("nodes", "node-1")] = {"kind": "Node", "metadata": {"name": "node-1"}}
    async with server.serve():
        kubelet = Kubelet(folder, server)
        await kubelet.start()
        made = World(folder, server, kubelet)
        server.pod = made.change()
        task = asyncio.create_task(kubelet.run())
        yield made
        for runtime in made.runtimes:
            await runtime.close()
            await runtime.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await kubelet.stop()


async def restart(runtime: KubernetesRuntime, expect: float | None = None) -> Any:
    return await runtime.restart(grace_seconds=10.0, expect_started_at=expect, incident="20261123T171656Z-3f9c")


# Without any right.


async def test_without_the_api_server_the_engine_is_restarted_and_not_said_to_run(world: World) -> None:
    runtime = world.runtime(None)
    view = await runtime.view()
    assert isinstance(view, RuntimeView)
    assert (view.runtime, view.running, view.started_at, view.hold) == ("kubernetes", None, None, None)
    assert runtime.can_restart
    result = await restart(runtime)
    assert result.started_at is None
    assert "the engine's port refused connections" in result.detail
    (request,) = world.kubelet.seen
    assert (request.engine_started_at, request.incident) == (1000.0, "20261123T171656Z-3f9c")
    assert not world.asked()
    await asyncio.sleep(0.2)
    assert len(world.kubelet.seen) == 1


async def test_request_is_withdrawn_when_the_page_tells_of_another_start(world: World) -> None:
    world.kubelet.closes_port = False
    result = await restart(world.runtime(None))
    assert "the engine's page told of another start" in result.detail
    assert not world.asked()


async def test_request_without_effect_is_withdrawn_at_its_end_and_said_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS", 0.2)
    monkeypatch.setattr(module, "LATE_SECONDS", 0.1)
    world.kubelet.deaf = True
    runtime = world.runtime(None)
    with pytest.raises(RestartWithoutEffect, match="kubelet did not restart the engine's container") as said:
        await restart(runtime)
    assert not world.asked()
    assert f"does its liveness probe read {world.folder}/restart, and does its image have sh, and date" in str(
        said.value
    )


async def test_request_is_withdrawn_where_dsobs_ends_in_the_middle(world: World) -> None:
    world.kubelet.deaf = True
    task = asyncio.create_task(restart(world.runtime(None)))
    await until(_then(world.asked), bool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not world.asked()


def _then(look: Any) -> Any:
    async def asked() -> Any:
        return look()

    return asked


async def test_drain_holds_in_the_probe_until_the_restart(world: World) -> None:
    runtime = world.runtime(None)
    folder = ControlFolder(world.folder)
    how = await runtime.drain(seconds=120.0, incident="i1")
    assert how == f"not ready by {world.folder}/drain, for 120 s at most"
    request = folder.read(Kind.DRAIN)
    assert request is not None
    assert (request.engine_started_at, request.incident) == (1000.0, "i1")
    assert 100 < request.expires_at - time.time() <= 121
    assert probe_cases.run(("sh", "-c"), probe_cases.script(Kind.DRAIN, world.folder)) == 1
    assert probe_cases.run(("sh", "-c"), probe_cases.script(Kind.RESTART, world.folder)) == 0
    await restart(runtime)
    assert folder.read(Kind.DRAIN) is None
    # Longer than a probe takes for one would be none at all.
    await runtime.drain(seconds=3600.0)
    assert probe_cases.run(("sh", "-c"), probe_cases.script(Kind.DRAIN, world.folder)) == 1
    await runtime.undrain()
    assert folder.read(Kind.DRAIN) is None


async def test_drain_of_a_persons_own_hand_stays(world: World) -> None:
    runtime = world.runtime(None)
    (world.folder / Kind.DRAIN).write_text(f"{int(time.time()) + 60} - by-hand\n")
    await runtime.undrain()
    assert (world.folder / Kind.DRAIN).exists()


async def test_pod_that_ends_is_not_drained(world: World) -> None:
    runtime = world.runtime(None)
    (world.folder / "terminating").touch()
    with pytest.raises(RuntimeHeld, match="preStop"):
        await runtime.drain(seconds=60.0)
    assert not (world.folder / Kind.DRAIN).exists()


async def test_port_that_refuses_already_is_left_to_kubelet(world: World) -> None:
    runtime = world.runtime(None)
    await world.kubelet.stop()
    with pytest.raises(RuntimeHeld, match="nobody listens on the engine's port"):
        await restart(runtime)
    assert not world.kubelet.seen


async def test_end_of_the_pod_is_witnessed_by_the_sidecars_own_hook(world: World) -> None:
    runtime = world.runtime(None)
    (world.folder / "terminating").touch()
    view = await runtime.view()
    assert isinstance(view, RuntimeView)
    assert view.planned_stop == view.stopping == view.hold == module.TERMINATING
    with pytest.raises(RuntimeHeld, match="preStop"):
        await restart(runtime)


async def test_folder_that_can_t_be_written_refuses_and_says_why(world: World) -> None:
    runtime = world.runtime(None)
    (world.folder / ".restart.tmp").mkdir()
    with pytest.raises(RuntimeRefused, match="the restart request can't be written"):
        await restart(runtime)
    (world.folder / ".restart.tmp").rmdir()


# With the right to read the pod.


async def test_container_is_told_by_the_api_server(world: World) -> None:
    runtime = await world.seeing()
    view = await runtime.view()
    assert isinstance(view, RuntimeView)
    assert (view.name, view.running, view.restart_count, view.look_only) == ("engine", True, 0, None)
    assert runtime.can_restart


async def test_new_instance_is_told_with_its_start_and_the_events_that_led_to_it(world: World) -> None:
    world.server.events = [
        {"type": "Warning", "reason": "Unhealthy", "message": "Liveness probe failed", "lastTimestamp": "b"},
        {"type": "Normal", "reason": "Started", "message": "started", "lastTimestamp": "a"},
    ]
    runtime = await world.seeing()
    before = await runtime.view()
    assert isinstance(before, RuntimeView)
    result = await restart(runtime, before.started_at)
    view = await until(runtime.view, lambda seen: isinstance(seen, RuntimeView) and bool(seen.events))
    assert isinstance(view, RuntimeView)
    assert result.started_at == view.started_at
    assert view.started_at != before.started_at
    assert view.restart_count == 1
    assert view.events == ("a Normal Started: started", "b Warning Unhealthy: Liveness probe failed")
    assert len(world.kubelet.seen) == 1


async def test_kubelets_word_alone_ends_a_request(world: World) -> None:
    world.kubelet.closes_port = False
    runtime = await world.seeing()
    runtime.page_started_at = lambda: None
    assert "kubelet told of another instance" in (await restart(runtime)).detail
    assert not world.asked()


async def test_instance_that_is_another_one_already_is_left_alone(world: World) -> None:
    runtime = await world.seeing()
    with pytest.raises(RuntimeRefused, match="did not start at 5"):
        await restart(runtime, 5.0)
    assert not world.kubelet.seen


def _deleted(world: World) -> None:
    assert world.server.pod is not None
    pod = world.change()
    pod["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:00Z"
    world.server.change(pod)


def _crashed(world: World) -> None:
    world.server.change(world.change(state={"waiting": {"reason": "CrashLoopBackOff"}}, started=False))


def _starting(world: World) -> None:
    world.server.change(world.change(started=False))


def _rolled_out(world: World) -> None:
    world.server.others[("deployments", "vllm")]["status"] = {"replicas": 2, "updatedReplicas": 1}


def _cordoned(world: World) -> None:
    world.server.others[("nodes", "node-1")]["spec"] = {"unschedulable": True}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_deleted, "the pod is being deleted"),
        (_crashed, "the engine's container does not run: kubelet starts it again by itself"),
        (_starting, "the engine's start-up probe has not succeeded yet: no liveness probe runs"),
        (_rolled_out, "a roll-out of Deployment vllm is under way (1 of 1 updated)"),
        (_cordoned, "node node-1 is cordoned"),
    ],
)
async def test_what_is_seen_just_before_acting_holds_dsobs_back(world: World, change: Any, why: str) -> None:
    runtime = await world.seeing()
    change(world)
    with pytest.raises(RuntimeHeld) as caught:
        await restart(runtime)
    assert str(caught.value) == why
    assert not world.asked()
    assert not world.kubelet.seen


async def test_what_holds_dsobs_back_is_looked_at_anew_until_it_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = await world.seeing()
    _rolled_out(world)
    with pytest.raises(RuntimeHeld):
        await restart(runtime)
    view = await runtime.view()
    assert isinstance(view, RuntimeView)
    assert view.hold == "a roll-out of Deployment vllm is under way (1 of 1 updated)"
    world.server.others[("deployments", "vllm")]["status"] = {"replicas": 1, "updatedReplicas": 1}
    monkeypatch.setattr(module, "HELD_SECONDS", 0.0)
    await until(runtime.view, lambda seen: isinstance(seen, RuntimeView) and seen.hold is None)


async def test_sick_engine_does_not_wait_for_an_api_server_that_is_silent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = await world.seeing()
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(module, "SUCCESSOR_SECONDS", 0.1)
    world.server.silent.set()
    world.kubelet.tells = False
    assert "refused connections" in (await restart(runtime)).detail


async def test_engine_without_the_probe_is_looked_at_only_and_that_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    pod = world.change()
    pod["spec"]["containers"][0]["livenessProbe"] = {"httpGet": {"path": "/health", "port": 8000}}
    world.server.pod = pod
    runtime = await world.seeing()
    view = await runtime.view()
    assert isinstance(view, RuntimeView)
    assert not runtime.can_restart
    assert "`dsobs k8s inject` adds that probe" in (view.look_only or "")
    with pytest.raises(RuntimeRefused, match="does not read"):
        await restart(runtime)
    assert len([r for r in caplog.records if "nothing can be restarted" in r.message]) == 1


async def test_owner_of_an_unknown_kind_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    pod = world.change()
    pod["metadata"]["ownerReferences"][0] |= {"kind": "RayCluster", "name": "ray"}
    world.server.pod = pod
    runtime = await world.seeing()
    world.server.change(pod)
    await runtime.view()
    (line,) = [r.message for r in caplog.records if "does not know" in r.message]
    assert line.endswith("a replica of RayCluster ray, a kind that dsobs does not know, so its roll-outs are not seen")


async def test_log_is_given_with_the_right_and_unknown_without(world: World) -> None:
    runtime = await world.seeing()
    assert await runtime.log_tail(5) == ["ready"]
    assert await runtime.log_tail(0) == []
    await runtime.close()
    assert await world.runtime(None).log_tail(5) == Unknown("no token")


# Opening.


def _settings(tmp_path: Path, **more: Any) -> RuntimeSettings:
    return RuntimeSettings(
        control_folder=tmp_path / "control",
        pod_info=tmp_path / "podinfo",
        service_account=tmp_path / "account",
        supervisor_socket=tmp_path / "s.sock",
        **more,
    )


async def test_neither_folder_nor_account_is_unknown_with_both_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POD_NAME", "a")
    monkeypatch.setenv("POD_NAMESPACE", "b")
    found = await open_runtime(_settings(tmp_path), Target())
    assert found == Unknown(
        f"there is no control folder {tmp_path}/control: mount there the emptyDir that the engine's probes read; "
        f"no service account token in {tmp_path}/account"
    )


async def test_two_sidecars_in_one_pod_are_said_so_and_the_second_acts_no_more(tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    first = await open_runtime(_settings(tmp_path), Target())
    assert isinstance(first, KubernetesRuntime)
    second = await open_runtime(_settings(tmp_path), Target())
    assert isinstance(second, Unknown)
    assert "take one of the two sidecars out of the pod" in second.reason
    await first.close()


async def test_second_of_two_sidecars_that_choose_by_themselves_says_why_it_only_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    settings = _settings(tmp_path)
    settings.control_folder.mkdir()
    first = await select(settings, Target())
    assert isinstance(first, KubernetesRuntime)
    assert isinstance(await select(settings, Target()), ProcessRuntime)
    (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "take one of the two sidecars out of the pod" in line.getMessage()
    elsewhere = await select(settings, Target(url="http://10.0.0.2:8000"))
    assert isinstance(elsewhere, Unknown)
    assert "take one of the two sidecars out of the pod" in elsewhere.reason
    assert "http://10.0.0.2:8000 is not this host" in elsewhere.reason
    await first.close()


async def test_auto_is_kubernetes_in_a_pod_with_a_control_folder_and_a_process_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (tmp_path / "control").mkdir()
    assert isinstance(await select(settings, Target()), ProcessRuntime)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    found = await select(settings, Target())
    assert isinstance(found, KubernetesRuntime)
    await found.close()
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(str(settings.supervisor_socket))
        assert isinstance(await select(settings, Target()), ProcessRuntime)
    settings.supervisor_socket.unlink()
    assert isinstance(
        await select(settings.model_copy(update={"control_folder": tmp_path / "no"}), Target()), ProcessRuntime
    )


async def test_request_is_not_written_where_the_lease_may_be_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = await world.seeing()
    turn = runtime.turn(Remediation())
    assert not isinstance(turn, Unknown)
    monkeypatch.setattr(turn, "lost", lambda: "not renewed in time")
    with pytest.raises(RuntimeHeld, match="not renewed in time"):
        await runtime.restart(grace_seconds=1.0, expect_started_at=None)
    assert world.kubelet.seen == []


async def test_without_an_api_server_there_is_nobody_to_coordinate_with(world: World) -> None:
    assert world.runtime(token=None).turn(Remediation()) == Unknown("no token")


async def test_pod_is_replaced_by_eviction_and_what_made_it_makes_another(world: World) -> None:
    runtime = await world.seeing(token="act")
    assert runtime.cannot_replace() is None
    result = await runtime.replace(incident="i1")
    assert (result.started_at, result.detail) == (None, f"evicted {POD}")
    assert world.server.pod is not None
    assert world.server.pod["metadata"]["deletionTimestamp"]


async def test_pod_is_not_replaced_without_the_right_or_where_nothing_would_make_another(world: World) -> None:
    runtime = await world.seeing()
    assert runtime.cannot_replace() == (
        'no right to replace the pod; add to the Role: {apiGroups: [""], resources: ["pods/eviction"], verbs: [create]}'
    )
    with pytest.raises(RuntimeRefused, match="no right to replace"):
        await runtime.replace()
    await runtime.close()
    alone = world.change()
    del alone["metadata"]["ownerReferences"]
    world.server.change(alone)
    other = world.runtime(token="act")
    await until(other.view, lambda view: isinstance(view, RuntimeView) and view.running is not None)
    assert "nothing would make the pod anew" in (other.cannot_replace() or "")


async def test_disruption_budget_is_waited_for_and_then_refuses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "BUDGET_SECONDS", 0.3)
    monkeypatch.setattr(replacing, "BUDGET_LOOK_SECONDS", 0.01)
    world.server.budget = "Cannot evict pod as it would violate the pod's disruption budget."
    runtime = await world.seeing(token="act")
    with pytest.raises(
        RuntimeRefused, match=r"allowed no eviction of .* for 0 s: Cannot evict pod as it would violate"
    ):
        await runtime.replace()
    assert len([asked for asked in world.server.asked if asked.endswith("/eviction")]) > 1

    monkeypatch.setattr(replacing, "BUDGET_SECONDS", 60.0)

    async def allow() -> None:
        await asyncio.sleep(0.15)
        world.server.budget = None

    result, _ = await asyncio.gather(runtime.replace(), allow())
    assert result.detail == f"evicted {POD}"


def grouped(world: World) -> None:
    """This pod and another are one engine."""
    mine = world.change()
    mine["metadata"]["labels"]["engine"] = "one"
    other = copy.deepcopy(mine)
    other["metadata"] |= {"name": "worker", "uid": "worker-uid"}
    world.server.further["worker"] = other
    world.server.change(mine)


async def test_engine_of_several_pods_is_restarted_as_a_whole_this_pod_last(world: World) -> None:
    grouped(world)
    runtime = await world.seeing(token="act", group_label="engine")
    result = await runtime.restart(grace_seconds=1.0, expect_started_at=None)
    assert result.detail == f"evicted worker, {POD}"
    assert world.server.further == {}
    assert world.kubelet.seen == []
    with pytest.raises(RuntimeHeld, match="being deleted"):
        await runtime.restart(grace_seconds=1.0, expect_started_at=None)


async def test_without_the_right_only_this_pod_of_several_is_restarted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    grouped(world)
    runtime = await world.seeing(group_label="engine")
    await runtime.restart(grace_seconds=1.0, expect_started_at=None)
    assert len(world.kubelet.seen) == 1
    assert "of 2 pods that are one engine only this one is restarted: no right to replace the pod" in caplog.text


async def test_fault_of_the_node_is_told_as_an_event_where_there_is_the_right(world: World) -> None:
    without = await world.seeing()
    await without.announce("GPUFault", "XID 79")
    assert world.server.events == []
    await without.close()
    await (await world.seeing(token="act")).announce("GPUFault", "XID 79")
    (event,) = world.server.events
    assert (event["reason"], event["involvedObject"]["name"]) == ("GPUFault", POD)
