"""dsobs's own metrics, on their own registry. A part that needs another counter declares it here."""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import Metric

from dsobs.model.samples import Sample, labels_of

# The time at which a counter began is of no use to dsobs, and would be a series more for each.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=False, support_collectors_without_names=True)


class _Process(ProcessCollector):
    """`process_*`: CPU time, memory and open files of dsobs itself."""

    def describe(self) -> Iterable[Metric]:
        """Its names, so that /proc is read for who wants them alone."""
        return self.collect()


_Process(registry=REGISTRY)

LOOP_TICKS = Counter("dsobs_loop_ticks", "Turns of a loop.", ["loop"], registry=REGISTRY)
LOOP_MISSED = Counter(
    "dsobs_loop_missed_ticks", "Turns that came too late and were left out.", ["loop"], registry=REGISTRY
)
LOOP_LAST = Gauge("dsobs_loop_last_tick_timestamp_seconds", "Time of a loop's last turn.", ["loop"], registry=REGISTRY)
LOOP_ERRORS = Counter("dsobs_loop_errors", "Turns that ended in an error.", ["loop"], registry=REGISTRY)
RULE_EVALUATIONS = Counter("dsobs_rule_evaluations", "Rule evaluations.", ["group"], registry=REGISTRY)
RULE_FAILURES = Counter(
    "dsobs_rule_evaluation_failures", "Rule evaluations that failed.", ["group", "rule"], registry=REGISTRY
)
RULE_MISSED = Counter("dsobs_rule_group_iterations_missed", "Group evaluations left out.", ["group"], registry=REGISTRY)
NOTIFICATIONS = Counter(
    "dsobs_notifications", "Notifications, by what became of them.", ["notifier", "outcome"], registry=REGISTRY
)
OUTBOX_PENDING = Gauge("dsobs_outbox_pending", "Notifications not yet accepted.", ["notifier"], registry=REGISTRY)
OUTBOX_OLDEST = Gauge(
    "dsobs_outbox_oldest_seconds", "Age of the oldest notification not yet accepted.", ["notifier"], registry=REGISTRY
)
ALERTS_HELD = Gauge(
    "dsobs_alerts_held", "Firing alerts of which nobody is told, by reason.", ["reason"], registry=REGISTRY
)
RELOAD_OK = Gauge(
    "dsobs_config_last_reload_successful", "1 if the last reading of the settings was used.", registry=REGISTRY
)
RELOAD_TIME = Gauge(
    "dsobs_config_last_reload_success_timestamp_seconds",
    "Time of the last reading of the settings that was used.",
    registry=REGISTRY,
)
NOTIFICATION_SECONDS = Histogram(
    "dsobs_notification_delivery_seconds",
    "From the alert's transition to the notifier's acceptance.",
    ["notifier"],
    buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
    registry=REGISTRY,
)
STEPS = Counter("dsobs_remediation_steps", "Remediation steps, by result.", ["action", "result"], registry=REGISTRY)
KUBERNETES_REQUESTS = Counter(
    "dsobs_kubernetes_requests",
    "Requests to the Kubernetes API server, by result.",
    ["verb", "result"],
    registry=REGISTRY,
)
INCIDENT_RECORDS_LOST = Counter(
    "dsobs_incident_records_lost",
    "Writes of alerts and actions to incidents.ndjson that failed, by reason; lines of the ledger are added later.",
    ["reason"],
    registry=REGISTRY,
)
LEDGER_WRITABLE = Gauge("dsobs_ledger_writable", "1 if the ledger can be written.", registry=REGISTRY)
STORE_SERIES = Gauge("dsobs_store_series", "Series held in memory.", registry=REGISTRY)
STORE_DROPPED = Counter("dsobs_store_dropped_samples", "Samples not kept, by reason.", ["reason"], registry=REGISTRY)
RECORDER_BYTES = Gauge("dsobs_recorder_bytes", "Size of the flight recorder on disk.", registry=REGISTRY)
RECORDER_DROPPED = Counter(
    "dsobs_recorder_dropped_records", "Records not written, by reason.", ["reason"], registry=REGISTRY
)
LOG_SHIPPER_UP = Gauge("dsobs_log_shipper_up", "1 if the log shipping process runs.", registry=REGISTRY)
LOG_SHIPPER_RESTARTS = Counter(
    "dsobs_log_shipper_restarts", "Times that the log shipping process ended by itself.", registry=REGISTRY
)
OTLP_EXPORTS = Counter(
    "dsobs_otlp_exports",
    "Requests of OTLP metrics and traces, by what became of them.",
    ["signal", "outcome"],
    registry=REGISTRY,
)
OTLP_DROPPED = Counter(
    "dsobs_otlp_dropped",
    "OTLP data points and spans that were never taken, by reason; a metrics request that is refused counts as one.",
    ["signal", "reason"],
    registry=REGISTRY,
)
SCALING_REPLICAS = Gauge(
    "dsobs_scaling_replicas",
    "Replicas that the workload is to have by its own spec; only where dsobs scales it.",
    ["workload"],
    registry=REGISTRY,
)
SCALING_DESIRED = Gauge(
    "dsobs_scaling_desired_replicas",
    "Replicas that demand and known peaks ask for, within the limits. Absent while it is not known.",
    ["workload"],
    registry=REGISTRY,
)
BUILD = Gauge("dsobs_build_info", "1, with dsobs's version.", ["version"], registry=REGISTRY)


class Own:
    """dsobs's own metrics of these names, log shipping's among them, for rules that name them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._page = REGISTRY.restricted_registry(names)

    def samples(self) -> list[Sample]:
        """As they stand now."""
        return [
            Sample(labels_of({**sample.labels, "__name__": sample.name}), sample.value)
            for metric in self._page.collect()
            for sample in metric.samples
        ]
