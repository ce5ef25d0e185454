"""The exporter's page, as a collector of prometheus-client."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dsobs_nvml.dcgm import DCGM_NAMES, dcgm_labels, dcgm_values
from dsobs_nvml.families import FAMILIES, Family
from dsobs_nvml.pods import Holder, Holders, PodWatch
from dsobs_nvml.reader import Reader, Snapshot

POD_LABELS = ("namespace", "pod", "container")


def _own(name: str, type_: str, help_: str, unit: str = "", *labels: str) -> Family:
    return Family(name, type_, help_, unit, labels, "")


OWN: dict[str, Family] = {
    family.name: family
    for family in (
        _own("dsobs_nvml_up", "gauge", "1 if the cards are read."),
        _own(
            "dsobs_nvml_unknown", "gauge", "1 with the reason why no card is read; only while that is so.", "", "reason"
        ),
        _own("dsobs_nvml_last_reading_time_seconds", "gauge", "When the last reading was made, Unix time.", "seconds"),
        _own("dsobs_nvml_reading_duration_seconds", "gauge", "What the last reading took.", "seconds"),
        _own("dsobs_nvml_readings_total", "counter", "Readings made."),
        _own("dsobs_nvml_reading_failures_total", "counter", "Readings that failed."),
        _own(
            "dsobs_nvml_question_seconds_total",
            "counter",
            "Time that NVML took for each question.",
            "seconds",
            "question",
        ),
        _own("dsobs_nvml_questions_total", "counter", "Times that each question was asked.", "", "question"),
        _own("dsobs_nvml_pod_resources_up", "gauge", "1 if kubelet says which pod holds which card."),
        _own("dsobs_nvml_pod_resources_failures_total", "counter", "Questions that kubelet did not answer."),
        _own(
            "dsobs_gpu_allocation",
            "gauge",
            "1 for each container that was given the card, or a MIG device of it.",
            "",
            "gpu",
            "uuid",
            "mig_uuid",
            *POD_LABELS,
            "resource",
        ),
    )
}
"""What the exporter says of itself, and of pods; by name."""


class CardCollector(Collector):
    """Families of the reader's cards as they stand.

    `pods`: who holds them; None if nobody is asked. `hostname`: for DCGM's label; None for no DCGM names. `costs`:
    question → (times asked, seconds).
    """

    def __init__(
        self,
        reader: Reader,
        pods: PodWatch | None = None,
        hostname: str | None = None,
        costs: Callable[[], dict[str, tuple[int, float]]] = dict,
    ) -> None:
        self._reader = reader
        self.pods = pods
        self._hostname = hostname
        self._costs = costs

    def collect(self) -> Iterable[Metric]:
        """All families that have series now."""
        snapshot = self._reader.snapshot()
        holders = (self.pods.holders() or {}) if self.pods is not None else {}
        minors = _minors(snapshot)
        page = _Page()
        self._tell_own(page, snapshot)
        for row in snapshot.rows:
            labels = {"gpu": row.gpu, "uuid": row.uuid, **dict(row.labels)}
            device = dict(row.labels).get("mig_uuid", row.uuid)
            page.add(FAMILIES[row.name], row.value, {**labels, **_pod(_of(holders, device, minors))})
        for reading in snapshot.readings:
            parts = {value for m in reading.more for name, value in m.labels if name == "mig_uuid"}
            for device in (reading.uuid, *sorted(parts)):
                for holder in _of(holders, device, minors):
                    labels = {"gpu": str(reading.index), "uuid": reading.uuid}
                    labels |= {"mig_uuid": device} if device in parts else {}
                    labels |= {**_pod([holder]), "resource": holder.resource}
                    page.add(OWN["dsobs_gpu_allocation"], 1.0, labels)
        yield from page.families()
        if self._hostname is not None:
            yield from self._dcgm(snapshot, holders, minors, self._hostname)

    def _tell_own(self, page: "_Page", snapshot: Snapshot) -> None:
        page.add(OWN["dsobs_nvml_up"], float(not snapshot.reason), {})
        if snapshot.reason:
            page.add(OWN["dsobs_nvml_unknown"], 1.0, {"reason": snapshot.reason})
        if snapshot.at is not None and snapshot.duration_seconds is not None:
            page.add(OWN["dsobs_nvml_last_reading_time_seconds"], snapshot.at, {})
            page.add(OWN["dsobs_nvml_reading_duration_seconds"], snapshot.duration_seconds, {})
        page.add(OWN["dsobs_nvml_readings_total"], snapshot.made, {})
        page.add(OWN["dsobs_nvml_reading_failures_total"], snapshot.failures, {})
        for question, (times, seconds) in self._costs().items():
            page.add(OWN["dsobs_nvml_question_seconds_total"], seconds, {"question": question})
            page.add(OWN["dsobs_nvml_questions_total"], times, {"question": question})
        if self.pods is not None:
            page.add(OWN["dsobs_nvml_pod_resources_up"], float(self.pods.holders() is not None), {})
            page.add(OWN["dsobs_nvml_pod_resources_failures_total"], self.pods.failures, {})

    def _dcgm(self, snapshot: Snapshot, holders: Holders, minors: dict[str, str], hostname: str) -> Iterator[Metric]:
        # Without a type: OpenMetrics would have `_total` at the end of a counter's name; these stay as they are.
        metrics = {name: Metric(name, row.help, "unknown") for name, row in DCGM_NAMES.items()}
        for reading, last_xid in zip(snapshot.readings, snapshot.last_xids, strict=True):
            mine = (row for row in snapshot.rows if (row.gpu, row.uuid) == (str(reading.index), reading.uuid))
            labels = {**dcgm_labels(reading, hostname), **_pod(_of(holders, reading.uuid, minors))}
            labels = {name: value for name, value in labels.items() if value}
            for name, value in dcgm_values(reading, mine, last_xid).items():
                metrics[name].add_sample(name, labels, value)
        yield from (metric for metric in metrics.values() if metric.samples)


class _Page:
    """Families in the order of their tables."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def add(self, family: Family, value: float, labels: dict[str, str]) -> None:
        metric = self._metrics.get(family.name)
        if metric is None:
            base = family.name.removesuffix("_total") if family.type == "counter" else family.name
            # prometheus-client adds a unit that the name does not end in.
            unit = family.unit if base.endswith(f"_{family.unit}") else ""
            metric = self._metrics[family.name] = Metric(base, family.help, family.type, unit)
        metric.add_sample(family.name, {name: value_ for name, value_ in labels.items() if value_}, value)

    def families(self) -> Iterator[Metric]:
        for name in (*OWN, *FAMILIES):
            if name in self._metrics:
                yield self._metrics[name]


def _pod(holders: list[Holder]) -> dict[str, str]:
    """The pod's labels where one container holds the device: a value that several share is no one's."""
    return dict(zip(POD_LABELS, holders[0][:3], strict=True)) if len(holders) == 1 else {}


def _of(holders: Holders, device: str, minors: dict[str, str]) -> list[Holder]:
    return holders.get(device) or holders.get(minors.get(device, "")) or []


def _minors(snapshot: Snapshot) -> dict[str, str]:
    """UUID of a card → its device's name, `nvidia0`."""
    found = {}
    for reading in snapshot.readings:
        for measure in reading.more:
            if measure.name == "dsobs_gpu_info":
                minor = dict(measure.labels).get("minor", "")
                if minor:
                    found[reading.uuid] = f"nvidia{minor}"
    return found
