"""Settings of the OpenTelemetry protocol (OTLP)."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from dsobs.config.fields import Address, Model, PositiveSeconds
from dsobs.config.secret import Secret


def _base(value: str) -> str:
    """The address that signals' paths are added to, as with OTEL_EXPORTER_OTLP_ENDPOINT."""
    found = re.search(r"/v1/(metrics|traces|logs)/?$", value)
    if found is not None:
        raise ValueError(f"{value!r} is the address of one signal; write {value[: found.start()]}")
    if re.search(r":4317/?$", value):
        raise ValueError(f"{value!r} is the port of OTLP over gRPC, dsobs speaks OTLP over HTTP; write port 4318")
    return value.rstrip("/")


OtlpAddress = Annotated[Address, AfterValidator(_base), Field(json_schema_extra={"pattern": r"^https?://[^@\s?#]+$"})]


class OtlpReceiver(Model):
    """What takes OTLP over HTTP, in protobuf: an OpenTelemetry Collector, or a vendor's address."""

    endpoint: OtlpAddress
    """Its base address, such as `http://127.0.0.1:4318`; `/v1/metrics`, `/v1/traces` and `/v1/logs` are added."""
    headers: Secret | None = None
    """Headers of each request, `NAME=VALUE,NAME=VALUE` with values percent-encoded (as OTEL_EXPORTER_OTLP_HEADERS), by
    `file:PATH` or `env:NAME`. Unset: none."""
    compress: bool = True
    """Send bodies compressed with gzip; false: as they are."""
    timeout: PositiveSeconds = 10.0
    """Deadline of one request."""
    ca_file: Path | None = None
    """CA certificates for https. Unset: the system's."""
    cert_file: Path | None = None
    """Client certificate for https. Unset: none."""
    key_file: Path | None = None
    """Key of the client certificate. Unset: it is in `cert_file`."""


class Otlp(OtlpReceiver):
    """OpenTelemetry: signals as metrics and incidents as traces, beside what Prometheus scrapes. Logs: `logs.otlp`."""

    interval: PositiveSeconds = 15.0
    """Between two exports of metrics."""
    metrics: bool = True
    """Export metrics."""
    traces: bool = True
    """Export incidents, one trace for each."""


class OtlpLogs(OtlpReceiver):
    """A receiver of OTLP that log records go to, in place of Elasticsearch."""

    bulk_bytes: int = Field(default=2 * 1024 * 1024, ge=64 * 1024, le=64 * 1024 * 1024)
    """A request is sent once its records have this size as JSON. Receivers refuse requests that are too large, a
    Collector those over 20 MiB."""
    bulk_records: int = Field(default=4_000, ge=1, le=100_000)
    """A request is sent once it has this many records."""
    bulk_wait: PositiveSeconds = 1.0
    """A request is sent once its first record has waited this long."""
    max_in_flight: int = Field(default=4, ge=1, le=32)
    """Most requests at a time; fewer while the receiver refuses or slows down."""
