"""GPU readings from a dsobs-nvml exporter instead of NVML: this pod's cards of a whole node's.

Which cards are this pod's, the first that is known: `gpu.devices`; the variable NVIDIA_VISIBLE_DEVICES, where it names
cards; the exporter's word for the pod (`gpu.pod`, else POD_NAMESPACE and POD_NAME). Otherwise they are unknown: another
pod's cards must never be taken for ours.
"""

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
from dsobs_nvml import FAMILIES, Measure
from dsobs_nvml.series import mask_of

from dsobs.collectors.exchange import exchange, open_session
from dsobs.config.models import Target
from dsobs.model.clock import Clock
from dsobs.model.observation import Gpu, GpuProcess, Unknown
from dsobs.model.samples import Page
from dsobs.series.exposition import ExpositionError, Parser

if TYPE_CHECKING:
    from dsobs.config.models import Gpu as GpuSettings

LOG = logging.getLogger(__name__)

DEADLINE_SECONDS = 2.0
RETRY_SECONDS = 10.0
"""Between tries to reach an exporter that did not answer."""
MAX_PAGE_BYTES = 8 * 1024 * 1024
MAX_NEW_XIDS = 64
"""Of one kind, from one page to the next."""
_HEADERS = {"Accept": "text/plain;version=0.0.4"}
_WHOLE = frozenset({"memory_total_bytes", "memory_used_bytes"})


def _pod(names: Mapping[str, str]) -> str:
    return f"{names.get('namespace', '')}/{names.get('pod', '')}"


class Choice:
    """Which of a node's cards are ours."""

    def __init__(self, settings: "GpuSettings", environ: Mapping[str, str] = os.environ) -> None:
        visible = [part.strip() for part in environ.get("NVIDIA_VISIBLE_DEVICES", "").split(",")]
        named = all(re.fullmatch(r"\d+|(GPU|MIG)-\S+", part) for part in visible)
        self.devices = tuple(settings.devices) or (tuple(visible) if named else ())
        """Indices and UUIDs, or `all`."""
        namespace, pod = environ.get("POD_NAMESPACE", ""), environ.get("POD_NAME", "")
        self.pod = settings.pod or (f"{namespace}/{pod}" if namespace and pod else "")
        """namespace/name."""

    def uuids(self, page: Page) -> set[str] | Unknown:
        """UUIDs of our cards and MIG devices on this page."""
        cards = {}
        held: set[str] = set()
        for series, value, _ in page.samples:
            names = dict(series)
            if names.get("__name__") == "dsobs_gpu_up":
                cards[names.get("gpu", "")] = names.get("uuid", "")
            elif names.get("__name__") == "dsobs_gpu_allocation" and self.pod == _pod(names) and value:
                held.add(names.get("mig_uuid") or names.get("uuid", ""))
        if "all" in self.devices:
            return set(cards.values())
        if self.devices:
            return {cards.get(device, device) for device in self.devices}
        if not self.pod:
            return Unknown("which of the exporter's cards are ours is not known; set gpu.devices or gpu.pod")
        return held or Unknown(f"the exporter names no card of pod {self.pod}")


class GpuExporterCollector:
    """Reads one exporter's page when asked, one question at a time. `read` and `close` as of `NvmlCollector`."""

    def __init__(
        self,
        settings: "GpuSettings",
        clock: Clock,
        environ: Mapping[str, str] = os.environ,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self.latest: tuple[Gpu, ...] | Unknown = Unknown("not read yet")
        """What the last `read` gave."""
        self._settings = settings
        self._target = Target(url=settings.source)
        self._choice = Choice(settings, environ)
        self._clock = clock
        self._deadline = deadline
        self._parser = Parser()
        self._session: aiohttp.ClientSession | None = None
        self._xids: dict[str, dict[str, float]] = {}
        """UUID → XID → what the exporter had counted last."""
        self._retry_at = float("-inf")
        self._said = ""
        self._closed = False

    async def read(self) -> tuple[Gpu, ...] | Unknown:
        """One reading of each of our cards, or why there is none. Never raises; waits for the deadline at most."""
        if not self._settings.enabled:
            self.latest = Unknown("gpu.enabled is false")
        elif self._closed:
            self.latest = Unknown("closed")
        elif not self._said or self._clock.now() >= self._retry_at:
            self.latest = await self._read()
            self._tell(self.latest)
        return self.latest

    def _tell(self, latest: tuple[Gpu, ...] | Unknown) -> None:
        if isinstance(latest, Unknown):
            self._retry_at = self._clock.now() + RETRY_SECONDS
            if latest.reason != self._said:
                LOG.warning("GPU signals are unknown: %s; tried again every %.0f s", latest.reason, RETRY_SECONDS)
            self._said = latest.reason
        elif self._said:
            LOG.info("GPU signals are known again")
            self._said = ""

    async def _read(self) -> tuple[Gpu, ...] | Unknown:
        if self._session is None:
            self._session = open_session(self._target)
        where = self._settings.source
        answer = await exchange(
            self._session,
            "GET",
            where.rstrip("/") + "/metrics",
            headers=_HEADERS,
            deadline=asyncio.get_running_loop().time() + self._deadline,
            max_bytes=MAX_PAGE_BYTES,
        )
        if answer.failure is not None:
            return Unknown(f"{where} (gpu.source): {answer.detail}")
        if answer.status != 200:
            return Unknown(f"{where} (gpu.source) answered {answer.status}")
        try:
            page = self._parser.parse(answer.body)
        except ExpositionError as error:
            return Unknown(f"{where} (gpu.source) gave no metrics page: {error}")
        return self._gpus(page)

    def _gpus(self, page: Page) -> tuple[Gpu, ...] | Unknown:
        cards, up, reason = _cards(page)
        if up is None:
            return Unknown(f"{self._settings.source} (gpu.source) is no dsobs-nvml")
        if not up:
            return Unknown(f"{self._settings.source} (gpu.source): {reason or 'no card is read'}")
        wanted = self._choice.uuids(page)
        if isinstance(wanted, Unknown):
            return wanted
        gpus = []
        for card in cards.values():
            if card.uuid in wanted:
                gpus.append(card.gpu(self._new_xids(card)))
            gpus += [part for part in card.parts() if part.uuid in wanted]
        missing = wanted - {gpu.uuid for gpu in gpus}
        if missing:
            return Unknown(f"{self._settings.source} (gpu.source) does not show {', '.join(sorted(missing))}")
        return tuple(gpus)

    def _new_xids(self, card: "_Card") -> tuple[int, ...] | None:
        """XIDs that the exporter counted since its page before; those of before the first page are of before our
        time.
        """
        if not card.xids:
            return None
        before = self._xids.get(card.uuid, card.xids)
        self._xids[card.uuid] = card.xids
        found: list[int] = []
        for xid, count in card.xids.items():
            # A counter that fell is of an exporter that was started again.
            known = before.get(xid, 0.0)
            new = count - known if known <= count else count
            if xid.isdecimal():
                found += [int(xid)] * min(int(new), MAX_NEW_XIDS)
        return tuple(found)

    async def close(self) -> None:
        """Lets go of the connection; legal twice."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Card:
    """What the page says of one card."""

    def __init__(self, index: str, uuid: str) -> None:
        self.index = int(index) if index.isdecimal() else 0
        self.uuid = uuid
        self.name = ""
        self.unknown = ""
        self.values: dict[str, Any] = {}
        self.reasons: list[str] | None = None
        self.processes: list[GpuProcess] = []
        self.more: list[Measure] = []
        self.xids: dict[str, float] = {}

    def take(self, name: str, names: Mapping[str, str], value: float) -> None:
        family = FAMILIES[name]
        if family.field:
            self.values[family.field] = int(value) if family.field in _WHOLE else value
            return
        match name:
            case "dsobs_gpu_up" | "dsobs_gpu_xid_last_time_seconds":
                return
            case "dsobs_gpu_unknown":
                self.unknown = names.get("reason", "unknown")
            case "dsobs_gpu_process_memory_bytes":
                if names.get("pid", "").isdecimal():
                    self.processes.append(GpuProcess(int(names["pid"]), int(value)))
            case "dsobs_gpu_clock_event_active":
                self.reasons = self.reasons or []
                self.reasons += [names.get("reason", "")] if value else []
            case "dsobs_gpu_xid_errors_total":
                self.xids[names.get("xid", "")] = value
            case _:
                if name == "dsobs_gpu_info":
                    self.name = names.get("name", "")
                told = tuple((label, names[label]) for label in family.labels if label in names)
                self.more.append(Measure(name, told, value))

    def gpu(self, xids: tuple[int, ...] | None) -> Gpu:
        return Gpu(
            self.index,
            self.uuid,
            self.name,
            clock_event_reasons=None if self.reasons is None else mask_of(self.reasons),
            # Without one there may be none, or none that is told.
            processes=tuple(self.processes) or None,
            xids=xids,
            more=tuple(self.more),
            unknown=self.unknown,
            **self.values,
        )

    def parts(self) -> list[Gpu]:
        """The card's MIG devices: memory is all that is known of them."""
        found: dict[str, dict[str, int]] = {}
        for name, told, value in self.more:
            uuid = dict(told).get("mig_uuid", "")
            if uuid and name in ("dsobs_gpu_mig_memory_total_bytes", "dsobs_gpu_mig_memory_used_bytes"):
                found.setdefault(uuid, {})[name.removeprefix("dsobs_gpu_mig_")] = int(value)
        return [Gpu(self.index, uuid, self.name, **values) for uuid, values in found.items()]  # type: ignore[arg-type]


def _cards(page: Page) -> tuple[dict[tuple[str, str], _Card], bool | None, str]:
    """The page's cards, whether the exporter reads them (None: it is no exporter's page), and why it does not."""
    cards: dict[tuple[str, str], _Card] = {}
    up: bool | None = None
    reason = ""
    for series, value, _ in page.samples:
        names = dict(series)
        name = names["__name__"]
        if name == "dsobs_nvml_up":
            up = bool(value)
        elif name == "dsobs_nvml_unknown":
            reason = names.get("reason", "")
        elif name in FAMILIES:
            key = names.get("gpu", ""), names.get("uuid", "")
            if key not in cards:
                cards[key] = _Card(*key)
            cards[key].take(name, names, value)
    return cards, up, reason
