"""Settings of log shipping."""

from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field

from dsobs.config.fields import (
    Address,
    IndexName,
    LabelPair,
    LogPath,
    Model,
    Namespace,
    PositiveSeconds,
    Seconds,
    Share,
)
from dsobs.config.log_expression import LogPattern
from dsobs.config.log_transform import LogTransform
from dsobs.config.otlp import OtlpLogs
from dsobs.config.secret import Secret

Bytes = Annotated[int, Field(ge=1)]


def _timezone(value: str) -> str:
    try:
        if value:
            ZoneInfo(value)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"{value!r} is no time zone of this host; write an IANA name, such as Europe/Berlin") from None
    return value


class LogFileSink(Model):
    """Where records are written, as JSON lines, while no Elasticsearch is configured."""

    path: Path | None = None
    """The file. Unset: `logs/records.ndjson` in the state directory."""
    max_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Size of all its files together; the oldest go first, and what went is counted."""
    files: int = Field(default=8, ge=2)
    """How many files that is; the current one is begun anew at an equal share of `max_bytes`."""


class Edge(Model):
    """A site whose link is often away: records go to the file first, and from there to Elasticsearch, in order."""

    enabled: bool = False
    """Records go to `logs.file`, within its `max_bytes`, and on to `logs.elasticsearch` under the same ids while that
    can be reached. What `max_bytes` takes before it was sent is lost and counted."""
    max_bytes_per_second: int = Field(default=0, ge=0)
    """How fast they go on, so that the link is left to others after days away. 0: as fast as it takes them."""


class Elasticsearch(Model):
    """Elasticsearch 8 or 9 that records go to."""

    urls: Annotated[tuple[Address, ...], Field(min_length=1)]
    """Address of each node, with its path prefix if it has one; the others take over from one that fails."""
    index: IndexName = ""
    """An index or data stream for all records. Empty: the data stream `logs-dsobs.<kind>-<namespace>`, by the kind of
    log."""
    api_key: Secret | None = None
    """API key in its encoded form, by `file:PATH` or `env:NAME`; read again when refused. Unset: none."""
    user: str = ""
    """User for basic authentication. Empty: none."""
    password: Secret | None = None
    """Password of `user`, by `file:PATH` or `env:NAME`; read again when refused."""
    bearer_token: Secret | None = None
    """Sent as a bearer token, by `file:PATH` or `env:NAME`; read again when refused. Unset: none."""
    ca_file: Path | None = None
    """CA certificates for https. Unset: the system's."""
    cert_file: Path | None = None
    """Client certificate for https. Unset: none."""
    key_file: Path | None = None
    """Key of the client certificate. Unset: it is in `cert_file`."""
    proxy: Secret | None = None
    """Address of an HTTP proxy, by `file:PATH` or `env:NAME` if it holds a password. Unset: none."""
    compress: bool = True
    """Send bodies compressed with gzip; false: as they are, which costs a third less CPU time and ten times the
    bandwidth."""
    timeout: PositiveSeconds = 60.0
    """Deadline of one request."""
    bulk_bytes: int = Field(default=4 * 1024 * 1024, ge=64 * 1024, le=64 * 1024 * 1024)
    """A request is sent once its body, before compression, has this size."""
    bulk_records: int = Field(default=10_000, ge=1, le=100_000)
    """A request is sent once it has this many records."""
    bulk_wait: PositiveSeconds = 1.0
    """A request is sent once its first record has waited this long."""
    max_in_flight: int = Field(default=4, ge=1, le=32)
    """Most requests at a time; fewer while the server refuses or slows down. Memory is twice `bulk_bytes` for each."""
    lifecycle: Literal["data-stream", "ilm", "none"] = "data-stream"
    """How old records go, as `dsobs logs setup` installs it: the data stream lifecycle, index lifecycle management
    (for clusters whose tiers it moves data through), or none."""
    retention: Seconds = 30 * 86400.0
    """Records are deleted some time after this age, by the lifecycle. 0: they are kept."""
    failure_store: bool = False
    """`dsobs logs setup` turns on the failure store of the data streams: records with a wrong mapping are kept there
    by Elasticsearch (8.19, 9.1 or newer) and counted as quarantined; false: they go to dsobs's dead letters."""
    max_refused: Share = 0.05
    """When more than this share of the last thousand records is refused for good (a wrong template), shipping holds
    and says so; up to it, refused records go to the dead letters."""


class Logs(Model):
    """Log shipping: files are read from where they were left, and each record is sent once. Nothing unless there are
    `files`, or the engine's output is found in a file."""

    files: tuple[LogPath, ...] = ()
    """File name patterns, such as `/var/log/vllm/*.log`; `**` is any folders, and relative ones start from the working
    directory. `FORMAT:PATTERN` names the format, else it is found out from the first lines. Empty: none but what
    `supervised` finds."""
    supervised: bool = True
    """The `--log-file` of `dsobs supervise` is one of the files, without being named: the supervisor says where it is
    (`runtime.supervisor_socket`). false: only `files` are."""
    exclude: tuple[str, ...] = ()
    """File name patterns that are left out."""
    from_end: bool = False
    """Files that are there when dsobs is first started are read from their ends; false: from their beginnings."""
    origin: str = ""
    """What record ids and `host.name` take as the place of origin. Empty: the host's or pod's name."""
    service: str = ""
    """`service.name` of records. Empty: target.name."""
    namespace: Namespace = "default"
    """Last part of the data streams' names, such as `production`."""
    labels: tuple[LabelPair, ...] = ()
    """`NAME=VALUE` each, put on every record as `labels.NAME`."""
    max_line_bytes: int = Field(default=256 * 1024, ge=1024, le=4 * 1024 * 1024)
    """A longer line is cut there, marked and counted."""
    max_held_bytes: int = Field(default=1024 * 1024 * 1024, ge=0)
    """Deleted files are kept open and read to their ends up to this size together; beyond it the oldest is given up
    and counted as lost. 0: deleted files are given up at once."""
    timezone: Annotated[str, AfterValidator(_timezone)] = ""
    """Zone of times that name none, such as vLLM's, by its IANA name (`Europe/Berlin`). Empty: this host's."""
    preset: Literal["", "deepseek-logs"] = ""
    """`deepseek-logs`: records of level ERROR and above only, to the index `deepseek-logs`; what is set beside it goes
    before it. Empty: every record, to data streams."""
    patterns: tuple[LogPattern, ...] = ()
    """Kinds of lines that are counted beside those that ship (see `dsobs_log_matches_total`), so that rules can raise
    alerts on them: `NAME=TEXT`, `NAME=~REGEX` (RE2), or `NAME=TEXT =~ REGEX`, which looks only at lines that hold TEXT
    and costs far less. The name of one that ships replaces it; `NAME=` switches it off."""
    transform: LogTransform = LogTransform()
    elasticsearch: Elasticsearch | None = None
    otlp: OtlpLogs | None = None
    file: LogFileSink = LogFileSink()
    edge: Edge = Edge()

    @property
    def index(self) -> str:
        """Index or data stream for all records; empty: by the kind of log."""
        own = self.elasticsearch.index if self.elasticsearch is not None else ""
        return own or self.preset

    @property
    def transform_in_force(self) -> LogTransform:
        """The transform with the preset's values where none were written."""
        if not self.preset:
            return self.transform
        least = self.transform.min_level or "error"
        return self.transform.model_copy(
            update={"min_level": least, "without_level": self.transform.without_level or "drop"}
        )
