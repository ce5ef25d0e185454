"""The turn to act on a workload, by its Lease."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsobs.config.models import Remediation as Settings
from dsobs.model.observation import Unknown
from dsobs.model.runtime import RestartWithoutEffect, RuntimeHeld, RuntimeRefused
from dsobs.model.turn import Fleet
from dsobs.runtimes.kubernetes import lease as leases
from dsobs.runtimes.kubernetes.api import REVIEW_SECONDS, Api, ApiError, Right, rule
from dsobs.runtimes.kubernetes.lease import Action, Held, Limits, Watched
from dsobs.runtimes.kubernetes.pod import DAY, Json, rollout, workload

log = logging.getLogger(__name__)

LEASE_RIGHTS = (
    Right("get", "leases", "coordination.k8s.io", "to see whether another sidecar acts"),
    Right("create", "leases", "coordination.k8s.io", "to act alone"),
    Right("update", "leases", "coordination.k8s.io", "to act alone"),
    Right("get", "pods", purpose="to find the workload"),
    Right("list", "pods", purpose="to leave enough of the workload's pods ready"),
)
"""What `coordination: lease` takes, all of it."""
SCALE = "scale"
"""An action on the workload's number of replicas, not on a pod."""
LOOK_SECONDS = 5.0
"""Between two looks at the Lease and the pods while an action is wanted."""
STALE_SECONDS = 120.0
"""A look that is older says nothing; longer than the actor's wait between two tries."""
RETRY_SECONDS = 1.0
"""From a renewal that failed to the next try."""
RELEASE_SECONDS = 5.0
"""What giving the Lease back may take; after that it runs out by itself."""

_FAILED = (ApiError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the turn needs to know of its pod and does not ask for itself."""

    pod: Callable[[], Json | Unknown]
    """As it was last seen."""
    desired: Callable[[Json], Any]
    """Coroutine function: the Deployment or StatefulSet above the pod, None where it may not be seen."""
    restarts: Callable[[Json], tuple[float, ...]]
    """The pod's own restarts of the last 24 hours."""
    group_label: str = ""


class LeaseTurn:
    """One sidecar's way to the Lease of its workload. Nothing is asked of the API server before a first action is
    wanted, but which rights there are and what the Lease remembers of pods that are gone."""

    def __init__(
        self,
        api: Api,
        around: Surroundings,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._api = api
        self._around = around
        self._clock = clock
        self._monotonic = monotonic
        self._watched = Watched()
        self._fleet = Fleet()
        self._looked_at = float("-inf")
        self._reviewed_at = float("-inf")
        self._review_after = REVIEW_SECONDS[0]
        self._missing: tuple[Right, ...] | Unknown = Unknown("not asked yet")
        self._background: asyncio.Task[None] | None = None
        self._term: asyncio.Timeout | None = None
        self._busy = False
        self.scaled_at: float | None = None
        """When the workload was last given another number of replicas by a sidecar, as far as the Lease was read."""
        self.inherited: tuple[float, ...] = ()
        """Restarts of pods that this one stands in for, in the last 24 hours."""

    # What guards ask.

    def refusal(self) -> str | None:
        """A right that is missing, with the rule that grants it."""
        self._review_if_due()
        if isinstance(self._missing, Unknown) or not self._missing:
            return None
        return (
            "no right to coordinate with other sidecars by a Lease; add to the Role: "
            f"{rule(self._missing)}; or set remediation.coordination"
        )

    def fleet(self) -> Fleet:
        """As of the last look."""
        if isinstance(self._missing, Unknown):
            return Fleet(acting=f"whether another sidecar acts is not known: {self._missing.reason}")
        if self._monotonic() - self._looked_at > STALE_SECONDS:
            return Fleet()
        return self._fleet

    def wanted(self) -> None:
        """Looks again, where the last look is some seconds old."""
        self._review_if_due()
        if not self._busy and self._monotonic() - self._looked_at >= LOOK_SECONDS:
            self._begin(self._look())

    def _review_if_due(self) -> None:
        settled = not isinstance(self._missing, Unknown)
        wait = (self._review_after if self._missing else float("inf")) if settled else LOOK_SECONDS
        if self._monotonic() - self._reviewed_at >= wait and not isinstance(self._around.pod(), Unknown):
            self._begin(self._review())

    def _begin(self, work: Any) -> None:
        if self._background is not None and not self._background.done():
            work.close()
            return
        self._background = asyncio.get_running_loop().create_task(work)

    async def _review(self) -> None:
        self._reviewed_at = self._monotonic()
        try:
            missing = tuple([right for right in LEASE_RIGHTS if not await self._api.allowed(right)])
        except _FAILED as error:
            self._missing = Unknown(f"the API server does not answer: {error}")
            return
        if missing != self._missing:
            if missing:
                log.warning(
                    "coordination: lease: the service account may not %s in namespace %s, so nothing is repaired; add "
                    "to its Role: %s",
                    " and ".join(f"{right.verb} {right.resource} ({right.purpose})" for right in missing),
                    self._api.identity.namespace,
                    rule(missing),
                )
            else:
                log.info("coordination by Lease %s", self._name())
        again = bool(missing and missing == self._missing)
        self._review_after = min(self._review_after * 2, REVIEW_SECONDS[1]) if again else REVIEW_SECONDS[0]
        self._missing = missing
        if not missing:
            await self._look()

    async def _look(self) -> None:
        """Refreshes `fleet` and `inherited`, and changes nothing."""
        try:
            held, pods, me = await self._read()
            self._fleet = await self._judged(held, pods, me)
        except RuntimeHeld as error:
            self._fleet = Fleet(acting=str(error))
        except _FAILED as error:
            self._fleet = Fleet(acting=self._unasked(error))
        self._looked_at = self._monotonic()

    # The Lease and the pods.

    def _pod(self) -> Json:
        pod = self._around.pod()
        if isinstance(pod, Unknown):
            raise RuntimeHeld(f"the workload is not known: {pod.reason}")
        return pod

    def _name(self) -> str:
        whole = workload(self._pod())
        return leases.lease_name(whole.kind, whole.name)

    @property
    def _me(self) -> str:
        pod = self._pod()
        return f"{pod['metadata']['name']}_{pod['metadata']['uid']}"

    @staticmethod
    def _unasked(error: Exception) -> str:
        told = f"answers {error.status}: {error}" if isinstance(error, ApiError) else f"does not answer: {error}"
        return f"whether another sidecar acts is not known: the API server {told}"

    async def _read(self) -> tuple[Held, list[Json], Json]:
        """The Lease first: who acts after that changes it, and then it can't be taken by what was read here."""
        held = leases.read_lease(await self._api.lease(self._name()))
        pods = await self._api.pods()
        uid = self._pod()["metadata"]["uid"]
        me = next((pod for pod in pods if pod["metadata"]["uid"] == uid), None)
        if me is None or me["metadata"].get("deletionTimestamp"):
            raise RuntimeHeld("the pod is being deleted" if me is not None else "the pod is there no more")
        if not isinstance(held.actions, Unknown):
            now = self._clock()
            past = leases.inherited(_on_pods(held.actions), pods, me)
            self.scaled_at = max((a.at for a in held.actions if a.what == SCALE), default=None)
            self.inherited = tuple(at for at in past if at > now - DAY)
        return held, pods, me

    async def _judged(self, held: Held, pods: Sequence[Json], me: Json, *, acts_on_pod: bool = True) -> Fleet:
        holder = self._watched.held_by_another(held, self._me, self._monotonic())
        if holder is not None:
            return Fleet(acting=f"pod {holder.rpartition('_')[0] or holder} acts on {workload(me)}")
        if isinstance(held.actions, Unknown):
            return Fleet(budget=held.actions.reason)
        if not acts_on_pod:
            return Fleet()
        label, settings, now = self._around.group_label, self.settings, self._clock()
        key = leases.replica_key(me, label)
        # It counts pods, and says nothing of engines of several pods.
        above: Json | None = await self._around.desired(me) if key == me["metadata"]["name"] else None
        # Told as what it is, and not as the pods that it has yet to make ready.
        if above is not None and (reason := rollout(above)) is not None:
            return Fleet(acting=reason)
        wanted = int((above.get("spec") or {}).get("replicas", 1)) if above is not None else None
        return leases.breaker(
            leases.replicas(pods, me, label),
            key,
            wanted,
            _on_pods(leases.kept(held.actions, now)),
            now,
            Limits(settings.fleet_breaker, settings.fleet_max_actions, settings.fleet_window),
        )

    # Having it.

    @contextlib.asynccontextmanager
    async def taken(self, incident: str, what: str = "restart") -> AsyncIterator[None]:
        """Takes the Lease for this action and notes the action in it; RuntimeHeld where that can't be done now."""
        if self._busy:
            raise RuntimeHeld("this sidecar acts already")
        self._busy = True
        try:
            lease, action, asked = await self._take(incident, what)
            undone = False
            term = asyncio.timeout_at(asked + leases.DEADLINE_SECONDS)
            renewing: asyncio.Task[None] | None = None
            held = _Lease(lease)
            try:
                async with term:
                    self._term = term
                    renewing = asyncio.create_task(self._renew(held, term))
                    yield
            except RestartWithoutEffect:
                raise
            except RuntimeRefused:
                # Surely nothing was done.
                undone = True
                raise
            except TimeoutError as error:
                if term.expired():
                    raise TimeoutError(f"the Lease was lost in the middle of it ({held.lost})") from error
                raise
            finally:
                self._term = None
                if renewing is not None:
                    renewing.cancel()
                    await asyncio.gather(renewing, return_exceptions=True)
                if not term.expired():
                    await self._release(held, action if undone else None)
                self._looked_at = float("-inf")
        finally:
            self._busy = False

    def lost(self) -> str | None:
        """Why what was taken may be another's by now: asked just before the step, since a process that was stopped in
        between does not know it. None outside a turn: then nobody asks for one."""
        term = self._term
        if term is None:
            return None
        until = term.when()
        if term.expired() or until is None or asyncio.get_running_loop().time() >= until:
            return "the Lease was not renewed in time, so another sidecar may act by now"
        return None

    async def _take(self, incident: str, what: str) -> tuple[Json, Action, float]:
        """The Lease as it was written, what was noted in it, and when that was asked for (the loop's time)."""
        try:
            held, pods, me = await self._read()
            # Another number of replicas takes none of those that are there.
            fleet = await self._judged(held, pods, me, acts_on_pod=what != SCALE)
            if what != SCALE:
                self._fleet, self._looked_at = fleet, self._monotonic()
            reason = fleet.acting or fleet.unready or fleet.budget
            if reason is not None:
                raise RuntimeHeld(reason)
            assert not isinstance(held.actions, Unknown)
            now = self._clock()
            action = Action(
                now,
                str(me["metadata"]["name"]),
                str(me["metadata"]["uid"]),
                what,
                incident,
                tuple(sorted({*self.inherited, *self._around.restarts(me)}))[-leases.KEPT_RESTARTS :],
            )
            actions = leases.kept((*held.actions, action), now)
            above = await self._around.desired(me) if held.raw is None else None
            lease = leases.written(held, self._name(), self._me, actions, now, _owner(me, above))
            asked = asyncio.get_running_loop().time()
            return await self._api.write_lease(lease), action, asked
        except ApiError as error:
            if error.status == 403:
                self._reviewed_at, self._missing = float("-inf"), Unknown("a right was taken away")
            faster = "another sidecar of the workload was faster" if error.status == 409 else None
            raise self._in_the_way(faster or self._unasked(error)) from error
        except (OSError, TimeoutError) as error:
            # A write whose answer was lost may hold the Lease: for this pod it is free all the same.
            raise self._in_the_way(self._unasked(error)) from error

    def _in_the_way(self, reason: str) -> RuntimeHeld:
        self._fleet, self._looked_at = Fleet(acting=reason), self._monotonic()
        return RuntimeHeld(reason)

    async def _renew(self, held: "_Lease", term: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        wait = leases.RENEW_SECONDS
        while True:
            await asyncio.sleep(wait)
            asked = loop.time()
            try:
                if held.stale:
                    await self._reread(held)
                now = self._clock()
                read = leases.read_lease(held.raw)
                assert not isinstance(read.actions, Unknown)
                held.raw = await self._api.write_lease(
                    leases.written(read, self._name(), self._me, leases.kept(read.actions, now), now)
                )
            except _LostError as error:
                held.lost = str(error)
                term.reschedule(asked)
                return
            except _FAILED as error:
                # A conflict: somebody has changed it, which need not be its holder.
                held.stale = True
                held.lost = f"not renewed in time: {error}"
                wait = RETRY_SECONDS
            else:
                held.stale = False
                term.reschedule(asked + leases.DEADLINE_SECONDS)
                wait = leases.RENEW_SECONDS

    async def _reread(self, held: "_Lease") -> None:
        found = leases.read_lease(await self._api.lease(self._name()))
        if found.raw is None or found.holder != self._me:
            raise _LostError(f"it is held by {found.holder or 'nobody'} now")
        if isinstance(found.actions, Unknown):
            raise _LostError(found.actions.reason)
        held.raw = found.raw

    async def _release(self, held: "_Lease", undone: Action | None) -> None:
        """Gives it back; `undone` is forgotten again."""
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                for _ in range(3):
                    if held.stale:
                        await self._reread(held)
                    read = leases.read_lease(held.raw)
                    assert not isinstance(read.actions, Unknown)
                    actions = [action for action in read.actions if action != undone]
                    try:
                        await self._api.write_lease(leases.written(read, self._name(), "", actions, self._clock()))
                    except ApiError as error:
                        if error.status != 409:
                            raise
                        held.stale = True
                    else:
                        return
        except (*_FAILED, _LostError) as error:
            log.warning("the Lease can't be given back, it runs out by itself: %s", error)

    async def close(self) -> None:
        """Ends what is asked; legal twice."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.gather(self._background, return_exceptions=True)


def _on_pods(actions: Sequence[Action]) -> tuple[Action, ...]:
    """Those that take a replica away for a while, a drain among them."""
    return tuple(action for action in actions if action.what != SCALE)


class _LostError(Exception):
    """Another one holds it."""


class _Lease:
    """The Lease while it is held."""

    def __init__(self, raw: Json) -> None:
        self.raw = raw
        self.stale = False
        """It may have changed since."""
        self.lost = "not renewed in time"


def _owner(pod: Json, above: Json | None) -> Mapping[str, Any] | None:
    """With whom the Lease goes: the workload where it is known for certain, so that nothing stays behind it."""
    if above is not None and "uid" in (above.get("metadata") or {}):
        found = {
            "apiVersion": above.get("apiVersion", "apps/v1"),
            "kind": above["kind"],
            "name": above["metadata"]["name"],
            "uid": above["metadata"]["uid"],
        }
        return found if above["kind"] == workload(pod).kind else None
    meta = pod["metadata"]
    owner = next((o for o in meta.get("ownerReferences") or () if o.get("controller")), None)
    if owner is None:
        return {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    if owner["kind"] != workload(pod).kind or owner["name"] != workload(pod).name:
        return None
    return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
