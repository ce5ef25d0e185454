"""The runtime `kubernetes`: looks by the API server where it may, acts by a request file."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from dsobs.config.models import Remediation, RuntimeSettings, Target
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RestartResult, RestartWithoutEffect, RuntimeHeld, RuntimeRefused
from dsobs.model.scaling import Replicas
from dsobs.runtimes.control_folder import NEEDED, RESTART_SECONDS, ControlFolder, Kind, Request, expiry
from dsobs.runtimes.kubernetes import lease as leases
from dsobs.runtimes.kubernetes import pod as pods
from dsobs.runtimes.kubernetes import replacing
from dsobs.runtimes.kubernetes.api import FURTHER, Api, ApiError, PodWatch
from dsobs.runtimes.kubernetes.coordination import LeaseTurn, Surroundings
from dsobs.runtimes.kubernetes.scaling import WorkloadScale

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""Between two looks whether a request has had its effect."""
CONNECT_SECONDS = 1.0
LATE_SECONDS = 8.0
"""kubelet may decide just before a request ends, and the engine then has the grace of its probe to go."""
SUCCESSOR_SECONDS = 8.0
"""How long a restart waits for word of the new instance's start; it is on its way all the same."""
CHECK_SECONDS = 3.0
"""What the questions to the API server before an action may take, together."""
DRAIN_SLACK_SECONDS = 10.0
"""Below the longest that a probe takes for a drain."""
HELD_SECONDS = 30.0
"""Between two looks whether a roll-out or a drain is over."""
_EVENTS, _LOG, _DEPLOYMENT, _STATEFUL_SET, _NODE = FURTHER
TERMINATING = "the pod is being terminated (the sidecar's preStop hook was run)"


@dataclass(frozen=True, slots=True)
class _Before:
    """The engine when a restart was asked for."""

    refused: bool
    page_started_at: float | None
    container: tuple[str | None, float | None] | None
    """Id and start of its container; None: not known."""


class KubernetesRuntime:
    """The engine's container in this pod."""

    name = "kubernetes"

    def __init__(
        self,
        settings: RuntimeSettings,
        target: Target,
        folder: ControlFolder,
        api: Api | Unknown,
        *,
        no_folder: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`no_folder`: why requests can't be written; None if they can."""
        parts = urlsplit(target.url)
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._wanted = settings.container
        self._group_label = settings.group_label
        self._mounted = str(settings.control_folder)
        self._folder = folder
        self._no_folder = no_folder
        self._api = api
        self._clock = clock
        self._watch = None if isinstance(api, Unknown) else PodWatch(api, self._pod_changed)
        self._held: tuple[str, float] | None = None
        """Who is at work beyond what the pod itself tells, and when that was looked at."""
        self._events: tuple[str, ...] = ()
        self._drained = False
        """This process has asked for a drain."""
        self._counted: int | None = None
        """Restarts of the container as of the last look."""
        self._said: set[str] = set()
        self._following: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turn: LeaseTurn | None = None
        self._scale: WorkloadScale | None = None
        self.page_started_at: Callable[[], float | None] = lambda: None

    @property
    def can_restart(self) -> bool:
        """A request can be written, and kubelet would act on it as far as that is known."""
        return self._look_only() is None

    async def view(self) -> RuntimeView | Unknown:
        """The API server's word as it was last heard; without it, what can be known without it."""
        if self._watch is not None and self._following is None:
            self._following = asyncio.create_task(self._watch.run())
        container = self._container()
        if isinstance(container, Unknown):
            return self._unseen(container.reason)
        assert self._watch is not None
        assert self._watch.pod is not None
        self._look_again_at_hold()
        view = pods.runtime_view(
            self._watch.pod,
            container,
            now=self._clock(),
            held=self._held[0] if self._held is not None else None,
            events=self._events,
        )
        before = self._turn.inherited if self._turn is not None else ()
        return self._with_marker(replace(view, look_only=self._look_only(), restarts_before=before))

    def _container(self) -> str | Unknown:
        """Name of the engine's container in the pod as it is now; Unknown while the pod is not known."""
        if self._watch is None:
            assert isinstance(self._api, Unknown)
            return self._api
        pod, error = self._watch.pod, self._watch.error
        if error is not None or pod is None:
            return Unknown(error or "not asked yet")
        return pods.engine_container(pod, self._wanted, self._port, self._mounted)

    def _unseen(self, why: str) -> RuntimeView:
        if self._watch is None or self._watch.error is None:
            self._say(f"the engine's container is not looked at: {why}; it is seen by its page and its port alone")
            if (blocked := self._look_only()) is not None:
                self._say(f"nothing can be restarted: {blocked}")
        return self._with_marker(
            RuntimeView(runtime=self.name, name=self._wanted or "engine", brings_back=True, look_only=self._look_only())
        )

    def _with_marker(self, view: RuntimeView) -> RuntimeView:
        if view.planned_stop is not None or not self._folder.terminating:
            return view
        return replace(view, planned_stop=TERMINATING, stopping=TERMINATING, hold=TERMINATING)

    def _look_only(self) -> str | None:
        if self._no_folder is not None:
            return self._no_folder
        container = self._container()
        if isinstance(container, Unknown):
            return None
        assert self._watch is not None
        assert self._watch.pod is not None
        return pods.cannot_restart(self._watch.pod, container, self._mounted)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)

    # What the watch tells.

    def _pod_changed(self) -> None:
        container = self._container()
        if isinstance(container, Unknown):
            return
        assert self._watch is not None
        assert self._watch.pod is not None
        workload = pods.workload(self._watch.pod)
        known = "" if workload.known else ", a kind that dsobs does not know, so its roll-outs are not seen"
        text = f"the engine is container {container} of pod {self._watch_name()}, a replica of {workload}{known}"
        if text not in self._said:
            self._said.add(text)
            log.log(logging.INFO if workload.known else logging.WARNING, "%s", text)
        if (why := self._look_only()) is not None:
            self._say(f"nothing can be restarted: {why}")
        status = pods.container_status(self._watch.pod, container)
        count = int((status or {}).get("restartCount", 0))
        if self._counted is not None and count != self._counted and _EVENTS in self._watch.granted:
            self._start(self._read_events())
        self._counted = count

    def _watch_name(self) -> str:
        return "" if isinstance(self._api, Unknown) else str(self._api.identity)

    async def _read_events(self) -> None:
        if isinstance(self._api, Unknown):
            return
        try:
            self._events = tuple(pods.event_line(event) for event in await self._api.events())
        except (ApiError, OSError, TimeoutError) as error:
            log.info("events of the pod are not known: %s", error)

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Others.

    def turn(self, settings: Remediation) -> LeaseTurn | Unknown:
        """How this sidecar and those of the workload's other replicas keep out of each other's way."""
        if isinstance(self._api, Unknown):
            return self._api
        if self._turn is None:
            around = Surroundings(self._seen_pod, self._above, self._own_restarts, self._group_label)
            self._turn = LeaseTurn(self._api, around, settings, clock=self._clock)
        self._turn.settings = settings
        return self._turn

    def _seen_pod(self) -> pods.Json | Unknown:
        if self._watch is None or self._watch.pod is None:
            return Unknown(self._watch.error or "not asked yet" if self._watch is not None else "closed")
        return self._watch.pod

    async def _above(self, pod: pods.Json) -> pods.Json | None:
        below = pods.workload(pod).rolled_out_by
        if below is None or self._watch is None or isinstance(self._api, Unknown):
            return None
        right = _DEPLOYMENT if below[0] == "Deployment" else _STATEFUL_SET
        return await self._api.workload(*below) if right in self._watch.granted else None

    def _own_restarts(self, pod: pods.Json) -> tuple[float, ...]:
        container = self._container()
        if isinstance(container, Unknown):
            return ()
        view = pods.runtime_view(pod, container, now=self._clock(), held=None)
        # Its oldest start is no restart.
        return view.started_history[1:]

    # How many replicas.

    async def replicas(self) -> Replicas | Unknown:
        """Of `dsobs.model.scaling.Scales`."""
        if isinstance(self._api, Unknown):
            return self._api
        pod = self._seen_pod()
        if isinstance(pod, Unknown):
            return pod
        if self._scale is None:
            self._scale = WorkloadScale(self._api)
        return await self._scale.look(pod)

    async def scale(self, before: Replicas, to: int) -> str:
        """Of `dsobs.model.scaling.Scales`."""
        pod, scale = self._acting()
        return await scale.scale(pod, before, to)

    async def set_minimum(self, before: Replicas, to: int, until: float | None) -> str:
        """Of `dsobs.model.scaling.Scales`."""
        pod, scale = self._acting()
        return await scale.set_minimum(pod, before, to, until)

    def _acting(self) -> tuple[pods.Json, WorkloadScale]:
        pod = self._seen_pod()
        if isinstance(pod, Unknown) or self._scale is None:
            raise RuntimeHeld("the pod is not known")
        if (lost := self._lost_turn()) is not None:
            raise RuntimeHeld(lost)
        return pod, self._scale

    # Before acting.

    def _look_again_at_hold(self) -> None:
        if self._held is not None and self._clock() - self._held[1] >= HELD_SECONDS:
            self._held = (self._held[0], self._clock())
            self._start(self._renew_hold())

    async def _renew_hold(self) -> None:
        with contextlib.suppress(ApiError, OSError, TimeoutError):
            reason = await self._others_at_work()
            self._held = (reason, self._clock()) if reason is not None else None

    async def _others_at_work(self) -> str | None:
        """A roll-out or a node that goes down, as far as there is a right to see them."""
        watch = self._watch
        if isinstance(self._api, Unknown) or watch is None or watch.pod is None:
            return None
        above = await self._above(watch.pod)
        if above is not None and (reason := pods.rollout(above)) is not None:
            return reason
        node = (watch.pod.get("spec") or {}).get("nodeName")
        if node and _NODE in watch.granted:
            return pods.node_going_down(await self._api.node(node))
        return None

    async def _check(self, expect_started_at: float | None) -> None:
        """Raises RuntimeHeld or RuntimeRefused where a restart must not or can't be. Where the API server does not
        answer now, what was known last counts: a sick engine must not wait for it."""
        watch = self._watch
        if watch is not None and watch.error is None and not isinstance(self._api, Unknown):
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    watch.take(await self._api.pod())
                    reason = await self._others_at_work()
            except (ApiError, OSError, TimeoutError) as error:
                log.warning("acting on what was last known of the pod: %s", str(error) or "no answer in time")
            else:
                if reason is not None:
                    self._held = (reason, self._clock())
                    raise RuntimeHeld(reason)
        if (why := self._look_only()) is not None:
            raise RuntimeRefused(why)
        view = await self.view()
        assert isinstance(view, RuntimeView)
        if view.hold is not None:
            raise RuntimeHeld(view.hold)
        if view.running is False:
            raise RuntimeHeld("the engine's container does not run: kubelet starts it again by itself")
        if expect_started_at is not None and view.started_at is not None and view.started_at != expect_started_at:
            raise RuntimeRefused(f"the container did not start at {expect_started_at} but at {view.started_at}")
        container = self._container()
        if view.running and isinstance(container, str) and watch is not None and watch.pod is not None:
            if pods.start_up_pending(watch.pod, container):
                raise RuntimeHeld("the engine's start-up probe has not succeeded yet: no liveness probe runs")
        elif await self._refuses():
            raise RuntimeHeld("nobody listens on the engine's port: kubelet starts what has ended by itself")

    # Acting.

    async def restart(
        self,
        *,
        grace_seconds: float,  # noqa: ARG002 - the liveness probe has a grace of its own
        expect_started_at: float | None,
        incident: str = "",
    ) -> RestartResult:
        """Asks kubelet for it by a request file, which is withdrawn on the first of: the port refuses connections,
        another start (the container's or the page's), its expiry, the end of dsobs. An engine of several pods is
        replaced as a whole where there is the right to."""
        await self._check(expect_started_at)
        try:
            group = await self._group()
        except (ApiError, OSError, TimeoutError) as error:
            raise RuntimeRefused(f"the pods of the engine can't be looked at: {error}") from error
        if len(group) > 1:
            if (why := self.cannot_replace()) is None:
                return await self._evict(group)
            self._say(f"of {len(group)} pods that are one engine only this one is restarted: {why}")
        before = await self._before()
        page = before.page_started_at
        started = page if page is not None else before.container[1] if before.container is not None else None
        begun = time.monotonic()
        try:
            if (lost := self._lost_turn()) is not None:
                raise RuntimeHeld(lost)
            request = Request(expiry(self._clock(), RESTART_SECONDS), started, incident or "-")
            self._folder.write(Kind.RESTART, request)
            effect = await self._effect(before, begun + RESTART_SECONDS)
        except (OSError, ValueError) as error:
            raise RuntimeRefused(f"the restart request can't be written: {error}") from error
        finally:
            self._withdraw(Kind.RESTART)
            # Its successor is to get requests as soon as it is ready.
            await self.undrain()
        if effect is None:
            effect = await self._effect(before, begun + RESTART_SECONDS + LATE_SECONDS)
        took = time.monotonic() - begun
        if effect is None:
            raise RestartWithoutEffect(
                f"kubelet did not restart the engine's container within {took:.0f} s of the request: does its "
                f"liveness probe read {self._mounted}/{Kind.RESTART}, and does its image have {NEEDED}?"
            )
        return RestartResult(
            started_at=await self._successor(before),
            detail=f"{effect} {took:.1f} s after the request in {self._mounted}/{Kind.RESTART}",
        )

    def _lost_turn(self) -> str | None:
        return self._turn.lost() if self._turn is not None else None

    def cannot_replace(self) -> str | None:
        """Of `dsobs.model.runtime.Replaces`."""
        watch = self._watch
        if watch is None or watch.pod is None or watch.error is not None:
            return f"the pod is not known ({watch.error})" if watch is not None else "there is no API server"
        return replacing.cannot_replace(watch.pod, watch.granted)

    async def replace(self, *, incident: str = "") -> RestartResult:  # noqa: ARG002 - the Lease has it
        """Evicts the engine's pods: what is left in their volumes and in shared memory goes with them."""
        if (why := self.cannot_replace()) is not None:
            raise RuntimeRefused(why)
        view = await self.view()
        if isinstance(view, RuntimeView) and view.hold is not None:
            raise RuntimeHeld(view.hold)
        try:
            reason = await self._others_at_work()
            group = await self._group()
        except (ApiError, OSError, TimeoutError) as error:
            raise RuntimeRefused(f"the API server can't be asked: {error}") from error
        if reason is not None:
            raise RuntimeHeld(reason)
        return await self._evict(group)

    async def _group(self) -> tuple[pods.Json, ...]:
        """The pods of this engine, this one last; only this one where others can't be seen."""
        watch = self._watch
        if watch is None or watch.pod is None or watch.error is not None or isinstance(self._api, Unknown):
            return ()
        mine = watch.pod
        key = leases.replica_key(mine, self._group_label)
        if key == mine["metadata"]["name"]:
            return (mine,)
        found = leases.replicas(await self._api.pods(), mine, self._group_label)
        others = [pod for each in found if each.key == key for pod in each.pods]
        return (*(pod for pod in others if pod["metadata"]["uid"] != mine["metadata"]["uid"]), mine)

    async def _evict(self, group: tuple[pods.Json, ...]) -> RestartResult:
        assert not isinstance(self._api, Unknown)
        return await replacing.evict(self._api, group, self._lost_turn)

    async def announce(self, reason: str, message: str) -> None:
        """An Event about the pod."""
        watch = self._watch
        if watch is None or watch.pod is None or isinstance(self._api, Unknown):
            return
        try:
            await replacing.tell(self._api, watch.pod, watch.granted, reason, message, self._clock())
        except (ApiError, OSError, TimeoutError) as error:
            log.warning("an Event can't be written: %s", error)

    async def drain(self, *, seconds: float, incident: str = "") -> str:
        """Of `dsobs.model.runtime.Drains`: the engine's readiness probe fails, and Services leave the pod out."""
        view = await self.view()
        if isinstance(view, RuntimeView) and view.hold is not None:
            raise RuntimeHeld(view.hold)
        if self._no_folder is not None:
            raise RuntimeRefused(self._no_folder)
        if (lost := self._lost_turn()) is not None:
            raise RuntimeHeld(lost)
        holds = min(seconds, Kind.DRAIN.horizon - DRAIN_SLACK_SECONDS)
        try:
            self._folder.write(
                Kind.DRAIN, Request(expiry(self._clock(), holds), self.page_started_at(), incident or "-")
            )
        except (OSError, ValueError) as error:
            raise RuntimeRefused(f"the drain request can't be written: {error}") from error
        finally:
            # One that failed may be there all the same.
            self._drained = True
        return f"not ready by {self._mounted}/{Kind.DRAIN}, for {holds:.0f} s at most"

    async def undrain(self) -> None:
        """Of `dsobs.model.runtime.Drains`; what a person wrote there stays."""
        if self._drained:
            self._drained = False
            self._withdraw(Kind.DRAIN)

    def _withdraw(self, kind: Kind) -> None:
        try:
            self._folder.withdraw(kind)
        except OSError as error:
            # It holds for seconds at most.
            log.error("the %s request can't be withdrawn, it expires by itself: %s", kind, error)

    async def _before(self) -> _Before:
        return _Before(await self._refuses(), self.page_started_at(), self._instance())

    def _instance(self) -> tuple[str | None, float | None] | None:
        """Id and start of the container that runs; (None, None) for one that does not; None: not known."""
        container = self._container()
        if isinstance(container, Unknown):
            return None
        assert self._watch is not None
        assert self._watch.pod is not None
        status = pods.container_status(self._watch.pod, container) or {}
        view = pods.runtime_view(self._watch.pod, container, now=self._clock(), held=None)
        return (status.get("containerID"), view.started_at) if view.running else (None, None)

    async def _effect(self, before: _Before, deadline: float) -> str | None:
        """What shows that the instance has ended; None if nothing has by `deadline` (monotonic)."""
        while True:
            if not before.refused and await self._refuses():
                return "the engine's port refused connections"
            page = self.page_started_at()
            if page is not None and before.page_started_at is not None and page != before.page_started_at:
                return "the engine's page told of another start"
            instance = self._instance()
            if instance is not None and before.container is not None and instance != before.container:
                return "kubelet told of another instance" if instance[0] else "kubelet told of the container's end"
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            await asyncio.sleep(min(LOOK_SECONDS, left))

    async def _successor(self, before: _Before) -> float | None:
        """Start of the new instance by kubelet's word, if it comes soon."""
        deadline = time.monotonic() + SUCCESSOR_SECONDS
        while before.container is not None and time.monotonic() < deadline:
            instance = self._instance()
            if instance is not None and instance[0] is not None and instance != before.container:
                return instance[1]
            await asyncio.sleep(LOOK_SECONDS)
        return None

    async def _refuses(self) -> bool:
        """Nobody listens on the engine's port. A time-out is none: a hung server's queue may be full."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(self._host, self._port)
        except ConnectionRefusedError:
            return True
        except (OSError, TimeoutError):
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return False

    # Evidence, and the end.

    async def log_tail(self, lines: int) -> list[str] | Unknown:
        """The container's last lines, where there is the right to read them."""
        container = self._container()
        if isinstance(container, Unknown):
            return container
        assert self._watch is not None
        if isinstance(self._api, Unknown) or _LOG not in self._watch.granted:
            return Unknown("no right to read the pod's log (get pods/log)")
        if lines <= 0:
            return []
        try:
            return await self._api.log_tail(container, lines)
        except (ApiError, OSError, TimeoutError) as error:
            return Unknown(f"the pod's log can't be read: {error}")

    async def close(self) -> None:
        """Withdraws what was asked for, and leaves the API server; legal twice."""
        tasks = [*self._tasks, *([self._following] if self._following is not None else [])]
        self._following = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._turn is not None:
            await self._turn.close()
        self._folder.close()
        if not isinstance(self._api, Unknown):
            api, self._api = self._api, Unknown("closed")
            self._watch = None
            await api.close()
