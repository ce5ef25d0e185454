"""What a sidecar asks of the API server, by a stand-in for it."""

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dsobs.runtimes.kubernetes import api as module
from dsobs.runtimes.kubernetes.api import READ_POD, WATCH_PODS, Api, PodWatch, Right, rule
from dsobs.runtimes.kubernetes.identity import Identity
from tests.contracts.kubernetes_api_contract import KubernetesApiContract, Scene, next_of
from tests.contracts.runtime_contract import until
from tests.kubernetes_stand_in import ACTING_RIGHTS, ALL_RIGHTS, NAMESPACE, POD, StandIn, pod_json
from tests.runtimes.kubernetes.accounts import api_of

UID = pod_json()["metadata"]["uid"]


class StandInScene:
    def __init__(self, server: StandIn, stack: contextlib.AsyncExitStack) -> None:
        self.server = server
        self._serving = stack
        self._apis: list[Api] = []
        server.tokens |= {
            "act": ACTING_RIGHTS,
            "full": ALL_RIGHTS,
            "get": frozenset({("get", "pods")}),
            "none": frozenset(),
        }

    async def api(self, account: str, *, pod: str | None = None) -> Api:
        self._apis.append(api_of(self.server.url, account, Identity(NAMESPACE, pod or POD)))
        return self._apis[-1]

    async def annotate(self, value: str) -> None:
        assert self.server.pod is not None
        changed = copy.deepcopy(self.server.pod)
        changed["metadata"]["annotations"] = {"test": value}
        self.server.change(changed)

    async def delete(self) -> None:
        self.server.change(None)

    async def protect(self) -> None:
        self.server.budget = "Cannot evict pod as it would violate the pod's disruption budget."

    async def forget_versions(self) -> None:
        self.server.forget()

    async def away(self) -> None:
        await self._serving.aclose()

    async def close(self) -> None:
        for api in self._apis:
            await api.close()


@pytest.fixture
async def scene() -> AsyncIterator[StandInScene]:
    async with contextlib.AsyncExitStack() as stack:
        server = StandIn()
        await stack.enter_async_context(server.serve())
        scene = StandInScene(server, stack)
        yield scene
        await scene.close()


class TestStandIn(KubernetesApiContract):
    @pytest.fixture
    def scene(self, scene: StandInScene) -> Scene:
        return scene


async def test_bookmark_is_a_sign_of_life_without_a_pod(scene: StandInScene) -> None:
    changes = (await scene.api("full")).watch("1")
    waiting = asyncio.create_task(next_of(changes, "BOOKMARK"))
    await until(lambda: _value(scene.server.watches), lambda n: n == 1)
    scene.server.bookmark()
    assert (await waiting)["metadata"]["resourceVersion"] == "2"


async def test_watch_that_ends_goes_on_where_it_stopped(scene: StandInScene) -> None:
    changes = (await scene.api("full")).watch("1")
    waiting = asyncio.create_task(next_of(changes, "MODIFIED"))
    await until(lambda: _value(scene.server.watches), lambda n: n == 1)
    scene.server.bookmark()
    scene.server.cut_off()
    await until(lambda: _value(scene.server.begun), lambda n: n == 2)
    await scene.annotate("later")
    assert (await waiting)["metadata"]["annotations"] == {"test": "later"}


async def test_watches_that_end_at_once_are_begun_no_faster_than_the_gap(scene: StandInScene) -> None:
    scene.server.ends_at_once = True
    api = api_of(scene.server.url, "full", Identity(NAMESPACE, POD), gap=0.2)
    endless = asyncio.create_task(next_of(api.watch("1"), "none"))
    await until(lambda: _value(scene.server.begun), lambda n: n >= 4)
    endless.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await endless
    moments = scene.server.begun_at
    # The way to the server takes its time too, and not the same each time.
    assert moments[3] - moments[0] >= 0.5
    await api.close()


async def _value(value: Any) -> Any:
    return value


class Watching:
    """A watch that runs, with its waits in the test's hands."""

    def __init__(self, api: Api) -> None:
        self.waits: list[float] = []
        self.changes = 0
        self.watch = PodWatch(api, self._changed, sleep=self._sleep)
        self._task = asyncio.create_task(self.watch.run())

    def _changed(self) -> None:
        self.changes += 1

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0.01)

    async def until(self, fits: Any) -> None:
        await until(lambda: _value(self.watch), fits)

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def watching() -> AsyncIterator[Any]:
    begun: list[Watching] = []

    def begin(api: Api) -> Watching:
        begun.append(Watching(api))
        return begun[-1]

    yield begin
    for each in begun:
        await each.stop()


async def test_idle_watch_asks_once_and_then_only_listens(scene: StandInScene, watching: Any) -> None:
    watch = watching(await scene.api("full"))
    await watch.until(lambda w: w.error is None and scene.server.watches == 1)
    asked = list(scene.server.asked)
    await scene.annotate("a")
    scene.server.bookmark()
    await watch.until(lambda w: (w.pod["metadata"].get("annotations") or {}).get("test") == "a")
    assert scene.server.asked == asked
    assert [line for line in asked if "selfsubject" not in line] == [
        f"GET /api/v1/namespaces/{NAMESPACE}/pods",
        f"WATCH /api/v1/namespaces/{NAMESPACE}/pods",
    ]


async def test_version_that_is_too_old_begins_anew_with_the_pod_as_it_is(scene: StandInScene, watching: Any) -> None:
    watch = watching(await scene.api("full"))
    await watch.until(lambda w: scene.server.watches == 1)
    scene.server.forget()
    scene.server.cut_off()
    await watch.until(lambda w: scene.server.begun == 3 and scene.server.watches == 1 and w.error is None)
    assert len(watch.waits) == 1
    await scene.annotate("after")
    await watch.until(lambda w: (w.pod["metadata"].get("annotations") or {}).get("test") == "after")


async def test_watch_that_is_silent_is_begun_anew_from_a_list_and_nothing_is_lost(
    scene: StandInScene, watching: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.1)
    watch = watching(await scene.api("full"))
    await watch.until(lambda w: scene.server.begun >= 3)
    assert watch.watch.error is None
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


async def test_server_that_is_away_is_asked_with_growing_waits_and_said_once(
    scene: StandInScene, watching: Any, caplog: pytest.LogCaptureFixture
) -> None:
    api = await scene.api("full")
    await scene.away()
    watch = watching(api)
    await watch.until(lambda w: len(watch.waits) >= 9)
    assert watch.watch.error.startswith("the API server does not answer")
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(watch.waits[:6]))
    assert max(watch.waits) <= 60.0
    assert len([r for r in caplog.records if "does not answer" in r.message]) == 1


@pytest.mark.parametrize(
    ("token", "pod", "uid", "says"),
    [
        ("forged", POD, None, "the API server does not accept the service account's token"),
        ("full", "other", None, f"there is no pod {NAMESPACE}/other: check POD_NAME and POD_NAMESPACE"),
        ("full", POD, "another-uid", f"pod {NAMESPACE}/{POD} is another one by now (POD_UID another-uid)"),
        ("none", POD, None, f"no right to read pod {NAMESPACE}/{POD}; add to the Role: {{apiGroups: [\"\"], "
         'resources: ["pods"], verbs: [get, list, watch]}'),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said_in_one_line_with_what_to_do(
    scene: StandInScene,
    watching: Any,
    caplog: pytest.LogCaptureFixture,
    token: str,
    pod: str,
    uid: str | None,
    says: str,
) -> None:
    api = api_of(scene.server.url, token, Identity(NAMESPACE, pod, uid))
    watch = watching(api)
    await watch.until(lambda w: w.error.startswith(says) and (len(watch.waits) >= 3 or uid is not None))
    assert len([r for r in caplog.records if r.message.startswith(says)]) == 1
    await watch.stop()
    await api.close()


async def test_missing_right_is_said_at_start_with_the_exact_rule(
    scene: StandInScene, watching: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    watch = watching(await scene.api("get"))
    await watch.until(lambda w: w.error is None and len(watch.waits) >= 1)
    assert watch.waits[0] == 60.0
    (line,) = [r.message for r in caplog.records if "the service account may not" in r.message]
    assert line == (
        f"the service account may not list pods and watch pods in namespace {NAMESPACE}, which is needed to learn of "
        'them at once instead of once a minute; add to its Role: {apiGroups: [""], resources: ["pods"], verbs: [list, '
        "watch]}"
    )
    assert len([r for r in caplog.records if "done without" in r.message]) == 1


async def test_no_right_at_all_is_asked_about_soon_at_first_and_at_last_once_in_ten_minutes(
    scene: StandInScene, watching: Any
) -> None:
    watch = watching(await scene.api("none"))
    await watch.until(lambda w: len(watch.waits) >= 8)
    assert watch.waits[:8] == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0]
    assert not [line for line in scene.server.asked if "selfsubject" not in line]


async def test_right_that_is_granted_later_is_found(scene: StandInScene, watching: Any) -> None:
    watch = watching(await scene.api("none"))
    await watch.until(lambda w: len(watch.waits) >= 1)
    scene.server.tokens["none"] = ALL_RIGHTS
    await watch.until(lambda w: w.error is None)


async def test_pod_that_is_deleted_is_not_known_any_more(scene: StandInScene, watching: Any) -> None:
    watch = watching(await scene.api("full"))
    await watch.until(lambda w: scene.server.watches == 1)
    await scene.delete()
    await watch.until(lambda w: w.error is not None)


def test_rules_of_one_resource_are_one_rule() -> None:
    assert rule([READ_POD, WATCH_PODS, Right("get", "deployments", "apps")]) == (
        '{apiGroups: [""], resources: ["pods"], verbs: [get, watch]}; '
        '{apiGroups: ["apps"], resources: ["deployments"], verbs: [get]}'
    )
