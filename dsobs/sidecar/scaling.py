"""Scale-out beside the loop: what is looked at, decided, published and done for the workload."""

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from dsobs.config import Config, Mode
from dsobs.model.clock import Clock
from dsobs.model.observation import Unknown
from dsobs.model.runtime import RuntimeHeld, RuntimeRefused
from dsobs.model.samples import Sample, labels
from dsobs.model.scaling import NoRoom, Places, Replicas, Scales
from dsobs.model.turn import Turn
from dsobs.remediation.actor import LedgerStore
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Entry, incident_id
from dsobs.scaling.decide import Decision, Scaler
from dsobs.series.exposition import ExpositionError, Parser
from dsobs.signals.demand import DemandMeter
from dsobs.state import StateError
from dsobs.telemetry import SCALING_DESIRED, SCALING_REPLICAS, STEPS

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
"""Between two looks at the workload while another number of replicas may be due, at most."""
LOOKS = 4
"""Within `scaling.sustained_for`: a shorter one is looked at more often."""
LEAST_LOOK_SECONDS = 1.0
QUIET_SECONDS = 300.0
"""The same while this replica is neither full nor hardly used, so that an idle sidecar asks next to nothing."""
PEER_SECONDS = 2.0
MOST_PEER_BYTES = 2 * 1024 * 1024
CHANGE_SECONDS = 30.0
"""What one change may take, the wait for the Lease included."""
DEMAND = "dsobs_engine_demand_ratio"


@dataclass(frozen=True, slots=True)
class Around:
    """What it needs of the sidecar."""

    runtime: Callable[[], Any]
    turn: Callable[[], Turn]
    switches: Callable[[], Switches]
    demand: Callable[[], float | None]
    """Of this replica."""
    start_seconds: Callable[[], float | None]
    """What the engine's last start took."""
    port: Callable[[], int]
    """Of the sidecars' own API."""
    read: Callable[[str], Awaitable[list[Sample] | None]]
    """Canonical samples of another server at this address; None where it does not answer."""
    page: Callable[[str | None, str], Awaitable[None]]
    """Tells people that they have to add a replica, by what command, or (None) that they have not any more."""


class Scaling:
    """The workload of which this engine is a replica."""

    def __init__(
        self, config: Config, ledger: LedgerStore, clock: Clock, session: aiohttp.ClientSession, around: Around
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._clock = clock
        self._session = session
        self._around = around
        self._scaler = Scaler()
        self._looked_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._said = ""
        self._noted: tuple[int, str] | None = None
        """(replicas, what came of it) that the ledger has last."""
        self._meters: dict[str, DemandMeter] = {}
        """By address of a server that has no sidecar of its own."""
        self._paged: str | None = ""
        """What people were told last; None: nothing is asked of them, empty: not known since the start."""
        self.decision = Decision(None)
        self.replicas: Replicas | Unknown = Unknown("not looked at")

    def configure(self, config: Config) -> None:
        """Other settings from the next look on."""
        self._config = config

    # When.

    def follow(self) -> None:
        """Told in each turn of the loop; begins a look where one is due, and waits for nothing."""
        settings = self._config.scaling
        if self._task is not None and not self._task.done():
            return
        if settings.mode != "scale":
            if self._paged:
                self._task = asyncio.get_running_loop().create_task(self._tell(None))
            return
        short = max(min(LOOK_SECONDS, settings.sustained_for / LOOKS), LEAST_LOOK_SECONDS)
        pause = short if self._pressing() else QUIET_SECONDS
        if self._clock.now() - self._looked_at >= pause:
            self._looked_at = self._clock.now()
            self._task = asyncio.get_running_loop().create_task(self._look())

    def _pressing(self) -> bool:
        demand, desired = self._around.demand(), self.decision.desired
        there = self.replicas.wanted if isinstance(self.replicas, Replicas) else None
        if isinstance(self.replicas, Unknown) and self.replicas.reason == "not looked at":
            return True
        return (
            (demand is not None and demand > 1.0)
            or (desired is not None and there is not None and desired > there)
            or self._to_put_back()
            # Rates of a server that has no sidecar are known by often looking.
            or (isinstance(self.replicas, Replicas) and bool(self.replicas.servers))
        )

    def _to_put_back(self) -> bool:
        """The time of a raised minimum is over, as far as it was seen."""
        own = self.replicas.autoscaler if isinstance(self.replicas, Replicas) else None
        return own is not None and own.raised_until is not None and self._clock.now() >= own.raised_until

    async def _look(self) -> None:
        try:
            await self._turn()
        except Exception:
            # A mistake here must not end the look after it, and no other part of dsobs waits for it.
            log.exception("scale-out: a look failed")

    # What.

    async def _turn(self) -> None:
        runtime = self._around.runtime()
        self.replicas = await self._replicas(runtime)
        demands: list[float | None] = []
        if isinstance(self.replicas, Replicas):
            own = self._around.demand()
            demands = [own, *await asyncio.gather(*(self._peer(peer) for peer in self.replicas.peers))]
            servers = self.replicas.servers
            self._meters = {url: self._meters.get(url) or DemandMeter() for url in servers}
            there = [each for each in await asyncio.gather(*map(self._server, servers)) if each is not None]
            # One that does not answer is loading, or ill: it takes no requests.
            self.replicas = replace(self.replicas, ready=self.replicas.ready - len(servers) + len(there))
            demands += there
        now = self._clock.now()
        self.decision = self._scaler.decide(
            now,
            self.replicas,
            demands,
            self._config.scaling,
            last_action=self._last_action(),
            start_seconds=self._around.start_seconds(),
        )
        self._publish()
        if isinstance(self.replicas, Unknown):
            self._say(f"replicas are not counted: {self.replicas.reason}")
            return
        self._say(f"{self.replicas.workload}: {self.replicas.wanted} replicas; {self.decision.reason}")
        if self.decision.desired is not None and self.decision.desired <= self.replicas.wanted:
            await self._tell(None)
        if self.decision.to is not None:
            await self._change(runtime, self.replicas, self.decision.to, self.decision.reason)
        await self._put_back(runtime, self.replicas, now)

    @staticmethod
    async def _replicas(runtime: Any) -> Replicas | Unknown:
        if isinstance(runtime, Unknown):
            return runtime
        if not isinstance(runtime, Scales):
            return Unknown(
                f"the runtime {runtime.name} starts no further replicas; start another server with its own dsobs "
                "beside it, and add it to the load balancer"
            )
        return await runtime.replicas()

    async def _peer(self, address: str) -> float | None:
        """Demand of another replica by its own sidecar's page; None where it does not tell."""
        host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
        url = f"http://{host}:{self._around.port()}/metrics"
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ExpositionError, ValueError):
            timeout = aiohttp.ClientTimeout(total=PEER_SECONDS)
            async with self._session.get(
                url, headers={"Accept": "text/plain"}, timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    return None
                raw = b""
                while len(raw) < MOST_PEER_BYTES and (chunk := await answer.content.read(65536)):
                    raw += chunk
            wanted = labels(DEMAND)
            page = await asyncio.to_thread(Parser().parse, raw.decode())
            return next((sample.value for sample in page.samples if sample.labels == wanted), None)
        return None

    async def _server(self, url: str) -> float | None:
        """Demand of another server by its own page; None where it does not tell."""
        samples = await self._around.read(url)
        if samples is None:
            self._meters[url].forget()
            return None
        late = self._config.rules.objectives.ttft_threshold
        return self._meters[url].observe(self._clock.now(), samples, self._config.scaling, late)

    def _last_action(self) -> float | None:
        own = max(
            (e.at for e in self._ledger.current.entries if e.kind == "scale" and e.state in ("done", "unknown")),
            default=None,
        )
        others = getattr(self._around.turn(), "scaled_at", None)
        return max((at for at in (own, others) if at is not None), default=None)

    def _publish(self) -> None:
        SCALING_DESIRED.clear()
        SCALING_REPLICAS.clear()
        if isinstance(self.replicas, Replicas):
            SCALING_REPLICAS.labels(self.replicas.workload).set(self.replicas.wanted)
            if self.decision.desired is not None:
                SCALING_DESIRED.labels(self.replicas.workload).set(self.decision.desired)

    def _say(self, text: str) -> None:
        # Numbers in it change all the time.
        kind = "".join(c for c in text if not c.isdigit())
        if kind != self._said:
            self._said = kind
            log.info("scale-out: %s", text)

    # Doing it.

    async def _change(self, runtime: Scales, replicas: Replicas, to: int, reason: str) -> None:
        scaling, own = self._config.scaling, replicas.autoscaler
        if own is not None and (not scaling.raise_min_replicas or to <= own.minimum or to > own.maximum):
            # The autoscaler has the demand as a metric, and goes by it.
            self._say(f"{own} scales {replicas.workload}; {reason}")
            return
        if to > replicas.wanted and isinstance(runtime, Places):
            try:
                room = await runtime.no_room()
            except (RuntimeRefused, OSError) as error:
                self._say(f"whether there is room for a replica is not known: {error}")
                return
            await self._tell(room, reason)
            if room is not None:
                what = f"scale {replicas.workload} from {replicas.wanted} to {to}"
                await self._note(to, "refused", what, reason, guard=f"no room: {room.reason}", run=room.command)
                return
        until = self._clock.now() + scaling.raise_for
        act = runtime.scale(replicas, to) if own is None else runtime.set_minimum(replicas, to, until)
        await self._act(act, f"scale {replicas.workload} from {replicas.wanted} to {to}", to, reason)

    async def _tell(self, room: NoRoom | None, reason: str = "") -> None:
        """Pages where people have to add a replica, once for as long as why and the command stay the same."""
        why = None if room is None else "".join(c for c in room.reason if not c.isdigit()) + room.command
        if why == self._paged:
            return
        self._paged = why
        if room is None:
            await self._around.page(None, "")
            return
        text = f"one more replica is wanted ({reason}), and there is no room here: {room.reason}"
        await self._around.page(text, room.command)

    async def _put_back(self, runtime: Any, replicas: Replicas, now: float) -> None:
        """A raised minimum that nobody needs any more, whoever raised it."""
        own = replicas.autoscaler
        if own is None or own.raised_until is None or own.raised_from is None or now < own.raised_until:
            return
        if self.decision.to is not None and self.decision.to > replicas.wanted:
            return
        act = runtime.set_minimum(replicas, own.raised_from, None)
        await self._act(act, f"put back the minimum of {own} to {own.raised_from}", own.raised_from, "its time is over")

    async def _act(self, act: Any, what: str, to: int, reason: str) -> None:
        try:
            refused = self._refused()
            if refused is not None or self._config.remediation.mode is Mode.OBSERVE:
                act.close()
                state = "observed" if refused is None else "refused"
                await self._note(to, state, what, reason, guard=refused)
                return
            await self._attempt(act, what, to, reason)
        except StateError as error:
            act.close()
            log.warning("scale-out: %s is left out, since the ledger can't record it: %s", what, error)

    def _refused(self) -> str | None:
        switches = self._around.switches()
        if switches.killed:
            return f"kill switch: {switches.killed}"
        if switches.state_set_aside:
            return f"state was set aside: {switches.state_set_aside}"
        if not self._ledger.current.writable:
            return f"ledger: {self._ledger.current.why_not}"
        return f"coordination: {switches.uncoordinated}" if switches.uncoordinated else None

    async def _note(self, to: int, state: str, what: str, reason: str, *, guard: str | None, run: str = "") -> None:
        """Once for as long as it stays the same. `run`: what a person can do instead."""
        if self._noted == (to, f"{state} {guard} {run}"):
            return
        self._noted = (to, f"{state} {guard} {run}")
        if state == "observed":
            log.warning("would %s (observe): %s", what, reason, extra={"event.action": "scale-observed"})
        else:
            instead = f"; add one: {run}" if run else ""
            log.warning("scale refused: %s: %s%s", what, guard, instead, extra={"event.action": "scale-refused"})
        STEPS.labels("scale", state).inc()
        detail = {"reason": f"{what}: {reason}", "guard": guard, "run": run}
        detail = {key: value for key, value in detail.items() if value}
        await self._write(incident_id(self._clock.now()), state, detail)

    async def _write(self, incident: str, state: str, detail: dict[str, Any]) -> Entry:
        return await self._ledger.append(Entry(self._clock.now(), incident, "scale", state, detail))

    async def _attempt(self, act: Any, what: str, to: int, reason: str) -> None:
        self._noted = None
        incident = incident_id(self._clock.now())
        detail: dict[str, Any] = {"reason": f"{what}: {reason}", "to": to}
        reserved = await self._write(incident, "reserved", detail)
        detail |= {"reserved_at": reserved.at, "attempt": reserved.id}
        log.warning("%s: %s", what, reason, extra={"event.action": "scale-begun"})
        state = "failed"
        try:
            limit = max(CHANGE_SECONDS, getattr(self._around.runtime(), "change_seconds", 0.0))
            async with asyncio.timeout(limit), self._around.turn().taken(incident, "scale"):
                detail["how"] = await act
            state, detail["reason"] = "done", f"{detail['reason']}; {detail['how']}"
        except RuntimeHeld as error:
            detail |= {"why": str(error), "withdrawn": True}
        except RuntimeRefused as error:
            detail["why"] = str(error)
        except (TimeoutError, OSError) as error:
            state, detail["why"] = "unknown", f"{type(error).__name__}: {error}"
        finally:
            act.close()
        STEPS.labels("scale", state).inc()
        log.log(
            logging.INFO if state == "done" else logging.ERROR,
            "scale %s: %s",
            state,
            detail.get("how") or detail.get("why"),
            extra={"event.action": f"scale-{state}"},
        )
        await self._write(incident, state, detail)

    async def stop(self) -> None:
        """Ends a look; legal twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
