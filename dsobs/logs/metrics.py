"""Metrics of log shipping, on a registry of their own: the shipping process sends them to the sidecar.

A part that needs another counter declares it here. Label values are bounded: reasons, patterns and sources from tables
or settings, never text of a line.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=False)

READ_BYTES = Counter("dsobs_log_read_bytes", "Bytes read from log files.", registry=REGISTRY)
RECORDS = Counter(
    "dsobs_log_records",
    "Records by what became of them: sent, duplicate (was there already), quarantined (failure store), dead_letter, "
    "rejected (by a receiver of OTLP, which does not say which).",
    ["outcome"],
    registry=REGISTRY,
)
LEFT_OUT = Counter(
    "dsobs_log_left_out_records", "Records that the settings leave out, by reason.", ["reason"], registry=REGISTRY
)
LOST = Counter(
    "dsobs_log_lost_bytes", "Bytes that were never read or never sent, by reason.", ["reason"], registry=REGISTRY
)
FAULTY_LINES = Counter(
    "dsobs_log_faulty_lines",
    "Lines that were sent with an error field, by fault: cut, unfinished, not_utf8, not_json, no_time, not_cri, "
    "format_failed.",
    ["fault"],
    registry=REGISTRY,
)
FAILED = Counter(
    "dsobs_log_failures",
    "Lines and records with which a part of dsobs or a plugin failed: format (sent as they stand), transform and "
    "encoder (put to the dead letters); fields: Elasticsearch can't take their fields (sent as text with a note).",
    ["part"],
    registry=REGISTRY,
)
BLANK_LINES = Counter(
    "dsobs_log_blank_lines", "Lines with nothing in them, of which no record is made.", registry=REGISTRY
)
MATCHES = Counter(
    "dsobs_log_matches",
    "Lines of the last hour that match a pattern of the table, by its name.",
    ["pattern"],
    registry=REGISTRY,
)
REDACTED = Counter(
    "dsobs_log_redacted_fields", "Fields in which something was redacted, by kind.", ["kind"], registry=REGISTRY
)
CUT_FIELDS = Counter("dsobs_log_cut_fields", "Fields that were cut at transform.max_field_bytes.", registry=REGISTRY)
ATTEMPTS = Counter("dsobs_log_requests", "Requests to the sink, by result.", ["result"], registry=REGISTRY)
IN_FLIGHT_LIMIT = Gauge("dsobs_log_in_flight_limit", "Requests that may be in flight at a time.", registry=REGISTRY)
BEHIND_BYTES = Gauge(
    "dsobs_log_behind_bytes", "Bytes of files not acknowledged yet, by pattern.", ["source"], registry=REGISTRY
)
BEHIND_SECONDS = Gauge(
    "dsobs_log_behind_seconds",
    "Age of the oldest line that is not acknowledged, by pattern.",
    ["source"],
    registry=REGISTRY,
)
FORWARD_WAITING = Gauge(
    "dsobs_log_forward_waiting_bytes",
    "Bytes of the file sink that are still to be forwarded to Elasticsearch.",
    registry=REGISTRY,
)
FILES = Gauge("dsobs_log_files", "Files that are watched.", registry=REGISTRY)
HELD = Gauge(
    "dsobs_log_held", "1 while shipping holds for somebody to mend something, by reason.", ["reason"], registry=REGISTRY
)

START_UP_BYTES = Gauge(
    "dsobs_log_engine_start_up_bytes",
    "Memory that the engine's log names at start, of one worker: kv_pool, weights. Absent until such a line was read.",
    ["fact"],
    registry=REGISTRY,
)
START_UP_SECONDS = Gauge(
    "dsobs_log_engine_start_up_seconds",
    "Time that the engine's log names at start: load (the model), init (profiling, KV cache, warm-up).",
    ["fact"],
    registry=REGISTRY,
)

# A counter that is not there can't rise: what rules look at is there from the start, at 0.
for _outcome in ("sent", "duplicate", "quarantined", "dead_letter", "rejected"):
    RECORDS.labels(_outcome)
for _reason in ("rotated_away", "truncated", "file_sink_full", "disk_budget", "cut", "nul", "format_failed"):
    LOST.labels(_reason)
for _part in ("format", "transform", "encoder", "fields"):
    FAILED.labels(_part)
