"""What users write. One frozen model per concern; unknown keys are refused.

Each field's description gives its meaning, unit and how to switch it off; the reference page is generated from it.
Durations are seconds, or words as in Prometheus: `500ms`, `30s`, `5m`, `24h`.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dsobs.config.fields import (
    Address,
    AlertmanagerAddress,
    BaseAddress,
    DockerHost,
    GpuSource,
    LabelMatcher,
    LabelPair,
    ListenAddress,
    Model,
    PodName,
    PositiveSeconds,
    Seconds,
    Severities,
    Share,
)
from dsobs.config.logs import Logs
from dsobs.config.otlp import Otlp
from dsobs.config.scaling import Scaling
from dsobs.config.secret import Secret


class Target(Model):
    """The inference server beside dsobs."""

    url: BaseAddress = "http://127.0.0.1:8000"
    """Base address of the server, without a path and without credentials."""
    engine: str = "auto"
    """Which engine it is: `auto` finds out from the page, or the name of one (`vllm`)."""
    name: str = ""
    """What alerts call this server; empty: the host's or pod's name."""
    api_key: Secret | None = None
    """API key for synthetic requests, by `file:PATH` or `env:NAME`. Unset: none is sent."""
    scrape_interval: PositiveSeconds = 1.0
    """Seconds between scrapes; below 1 s they cost the server too much."""
    scrape_timeout: PositiveSeconds = 5.0
    """Deadline of one scrape. Longer than the interval is fine: one is in flight at a time."""
    max_series: int = Field(default=20_000, ge=1)
    """A page with more series is not read. A real one has some 500 for each engine."""
    max_page_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """A metrics page larger than this is refused."""
    ca_file: Path | None = None
    """CA certificates for https. Unset: the system's."""


class ProbeMode(StrEnum):
    """When synthetic requests are sent."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Hang(Model):
    """How a hang is told from a busy engine."""

    probe: ProbeMode = ProbeMode.AUTO
    """One-token requests that prove life: `auto` (once a notifier or enforce is configured), `on`, `off`."""
    probe_timeout: PositiveSeconds = 3.0
    """Deadline of a probe."""
    idle_probe_interval: Seconds = 30.0
    """Between probes of an idle engine; 0 switches them off."""
    idle_after: Seconds = 30.0
    """Nothing running and nothing moved for this long is idle."""
    min_threshold: PositiveSeconds = 5.0
    """Least stall that sends a probe, while tokens were moving."""
    max_threshold: PositiveSeconds = 60.0
    """Stall that sends a probe in a prefill, and the most that learning may ask for."""
    learn_after: Seconds = 600.0
    """Seconds of work to see before the learned threshold is used."""
    unresponsive_after: PositiveSeconds = 90.0
    """Accepting and not answering one byte for this long is EngineUnresponsive."""


class Startup(Model):
    """How long an engine may take to come up."""

    budget: Seconds = 3600.0
    """Until then a starting engine is left alone; afterwards it is paged, never restarted."""


class RuntimeSettings(Model):
    """What runs the engine, and so can restart it."""

    name: str = "auto"
    """`auto` (a `dsobs supervise` socket if there is one, else in a pod `kubernetes`, else the process that listens on
    the port, to look at only), `none`, `process`, `docker`, `kubernetes` or the name of a plugin. `process` also where
    something else listens on the target's port and stands before the supervised engine: by `auto`, an engine that is
    seen not to listen there is another one."""
    container: str = ""
    """Docker: name or id of the engine's container, required for `docker`. Kubernetes: its name in the pod; empty: the
    one whose liveness probe reads the control folder, else the only one beside the sidecar."""
    docker_host: DockerHost = "unix:///var/run/docker.sock"
    """Docker: where its API listens."""
    supervisor_socket: Path = Path("/run/dsobs/supervise.sock")
    """Process: the socket of `dsobs supervise`."""
    control_folder: Path = Path("/run/dsobs")
    """Kubernetes: the emptyDir that the engine's probes read, in which a restart is asked for."""
    pod_info: Path = Path("/etc/podinfo")
    """Kubernetes: a downwardAPI volume with the files `name`, `namespace` and `uid`, where the variables POD_NAME,
    POD_NAMESPACE and POD_UID are not set."""
    service_account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    """Kubernetes: folder with the `token` and `ca.crt` of a service account. Not there: dsobs works without the API
    server, and sees the engine by its page alone."""
    group_label: str = ""
    """Kubernetes: a label whose value names the pods that are one engine together; they are restarted together, by
    eviction. Empty: those of a LeaderWorkerSet's group, else each pod is one."""
    timeout: PositiveSeconds = 10.0
    """Deadline of one question to the runtime."""
    stop_grace: Seconds = 10.0
    """From SIGTERM to SIGKILL when an engine is restarted."""


class Gpu(Model):
    """GPU readings."""

    enabled: bool = True
    """Read NVML if there is a driver; false: GPU signals are unknown."""
    source: GpuSource = "local"
    """`local`: NVML here; or the address of a dsobs-nvml exporter of this node, `http://HOST:9941`, where a sidecar has
    no NVML of its own."""
    interval: PositiveSeconds = 1.0
    """Between readings, at least."""
    devices: tuple[str, ...] = ()
    """UUIDs or indices to read. Empty: all that NVML shows; of an exporter the pod's own, by NVIDIA_VISIBLE_DEVICES or
    by `gpu.pod`. `all` for all that an exporter shows."""
    pod: PodName = ""
    """NAMESPACE/NAME of the pod whose cards are read from an exporter. Empty: by the variables POD_NAMESPACE and
    POD_NAME.
    """


class Host(Model):
    """Shared memory, disk, and the engine's cgroup."""

    enabled: bool = True
    """Read them; false: they are unknown."""
    interval: PositiveSeconds = 5.0
    """Between readings, at least."""
    shm: Path | None = None
    """Where the engine's /dev/shm can be seen from here, such as a shared emptyDir. Unset: through the engine's
    process, where that can be looked into, else unknown."""
    mountpoints: tuple[Path, ...] = ()
    """File systems to watch besides that of `state.directory`."""


class MemoryRule(Model):
    """GPUMemoryHigh, as documented."""

    threshold: Share = 0.85
    """Share of the card."""
    for_: Seconds = Field(default=300.0, alias="for")
    """How long before it fires."""
    form: Literal["effective", "literal"] = "effective"
    """`effective`: memory in use for work; `literal`: what NVML says, true on every healthy vLLM."""


class LatencyRule(Model):
    """LatencyP99High, as documented."""

    threshold: PositiveSeconds = 0.5
    """P99 above this fires; where it is a bucket bound it is decided exactly."""
    window: PositiveSeconds = 300.0
    """Over the requests of this long."""
    min_requests: int = Field(default=100, ge=1)
    """Fewer in the window say nothing."""
    signal: Literal["ttft", "e2e"] = "ttft"
    """`ttft` time to first token; `e2e` the whole request, for servers of short answers."""


class RestartsRule(Model):
    """ContainerRestartsHigh, as documented."""

    threshold: int = Field(default=3, ge=0)
    """More restarts than this in 24 h fire."""


FASTEST_BURN = 14.4
"""Times the budget at which an objective pages at once; the shipped rules have it as a number."""
LEAST_TARGET = 0.931
"""1 - 1 / FASTEST_BURN, rounded up: of a larger budget it can't be reached."""


def _target(value: float) -> float:
    """A share that can be missed, and missed by so much that the fastest burn rate is reached."""
    if not value < 1:
        raise ValueError(f"is {value:g}, which leaves no budget to burn; write less than 1, such as 0.9999")
    if FASTEST_BURN * (1 - value) >= 1:
        raise ValueError(
            f"is {value:g}: {FASTEST_BURN} times a budget of {1 - value:.3g} is never burnt, so that nothing would be "
            f"paged at once; write {LEAST_TARGET} or more"
        )
    return value


Objective = Annotated[float, AfterValidator(_target), Field(allow_inf_nan=False)]


class Objectives(Model):
    """What is promised, for TimeToFirstTokenBudget… and AvailabilityBudget…: they page when the error budget burns."""

    ttft_threshold: PositiveSeconds = 2.5
    """The first token within this. It has to be a bucket bound of the engine, or these rules say nothing."""
    ttft_target: Objective = 0.99
    """For this share of the requests, 0.931 or more: of a larger budget, 14.4 times can't be burnt."""
    availability_target: Objective = 0.999
    """Available for this share of the time, 0.931 or more. A planned stop is not unavailable."""


class Rules(Model):
    """Which rules run here."""

    shipped: bool = True
    """The rules that ship with dsobs."""
    files: tuple[Path, ...] = ()
    """Further Prometheus rule files."""
    evaluation: Literal["sidecar", "prometheus"] = "sidecar"
    """Where pages are evaluated: `prometheus` keeps the sidecar from sending any, so that nobody is paged twice."""
    gpu_memory: MemoryRule = MemoryRule()
    latency_p99: LatencyRule = LatencyRule()
    restarts: RestartsRule = RestartsRule()
    objectives: Objectives = Objectives()


class Queries(Model):
    """What one PromQL query may take, a rule's too. One that takes more fails with an error that says so."""

    max_samples: int = Field(default=5_000_000, ge=1)
    """Samples that it reads from the store, makes in subqueries and gives as its result."""
    timeout: PositiveSeconds = 10.0
    """Time from its start to its end."""
    max_points: int = Field(default=500_000, ge=1)
    """Values in the answer of a range query."""
    subquery_step: PositiveSeconds = 60.0
    """Step of a subquery that names none, `x[1h:]`. Prometheus takes its own `evaluation_interval`; for the same
    results give the same here."""
    keep: Seconds = Field(default=3600.0, le=21_600.0)
    """How far back dashboards and the query API see what no rule reads, one sample in 15 s of 1,000 series at most; 6 h
    at most. 0: they see only what rules read."""


class PagerDuty(Model):
    """PagerDuty, Events API v2."""

    routing_key: Secret
    """Integration key of 32 characters, by `file:PATH` or `env:NAME`."""
    url: Address = "https://events.pagerduty.com/v2/enqueue"
    """Where events go."""
    fallback: bool = False
    """Page only what no Alertmanager has taken (`notifiers.alertmanager.fallback_after`); false: page everything."""
    severities: Severities = ("critical", "error", "warning")
    """Alerts of other severities are not sent."""


class Webhook(Model):
    """A plain HTTP receiver of JSON."""

    url: Secret
    """Where to POST; by `file:PATH` or `env:NAME` if the address is secret, else as it is."""
    token: Secret | None = None
    """Sent as a bearer token. Unset: none."""
    severities: Severities = ("critical", "error", "warning", "info")
    """Alerts of other severities are not sent."""


class Slack(Model):
    """A Slack incoming webhook, or what takes the same JSON (Mattermost, Rocket.Chat)."""

    url: Secret
    """Where to POST; the address is secret: by `file:PATH` or `env:NAME`."""
    severities: Severities = ("critical", "error", "warning")
    """Alerts of other severities are not sent."""


class Alertmanager(Model):
    """Alertmanagers, API v2. Alerts are sent to each again and again, as Prometheus does."""

    urls: Annotated[tuple[AlertmanagerAddress, ...], Field(min_length=1)]
    """Address of each, with its path prefix if it has one; never that of a load balancer in front of several."""
    severities: Severities = ("critical", "error", "warning", "info")
    """Alerts of other severities are not sent. Watchdog always is."""
    resend_delay: PositiveSeconds = 60.0
    """A firing alert is sent again after this long; Alertmanager ends it four times as long after the last time."""
    timeout: PositiveSeconds = 10.0
    """Deadline of one request."""
    fallback_after: PositiveSeconds = 120.0
    """Alerts that waited this long at every Alertmanager are paged by the notifiers that are a fallback."""
    labels: tuple[LabelPair, ...] = ()
    """`NAME=VALUE` each, for alerts that have no such label, such as `cluster=eu-1`. `instance` is target.name unless
    it is given here."""
    basic_user: str = ""
    """User for basic authentication. Empty: none."""
    basic_password: Secret | None = None
    """Password for basic authentication, by `file:PATH` or `env:NAME`."""
    bearer_token: Secret | None = None
    """Sent as a bearer token. Unset: none."""
    ca_file: Path | None = None
    """CA certificates for https. Unset: the system's."""
    cert_file: Path | None = None
    """Client certificate for https. Unset: none."""
    key_file: Path | None = None
    """Key of the client certificate. Unset: it is in `cert_file`."""
    mirror_silences: bool = True
    """Silences of dsobs are made there too, and ended there; false: silenced alerts are not sent to it."""
    silence_scope: tuple[LabelMatcher, ...] = ()
    """Matchers that each mirrored silence gets, so that it silences this server only. Empty: `instance` is target.name
    (or that of `labels`), with or without a port."""
    silences_stop_repair: bool = False
    """A silence that somebody made in Alertmanager also stops repair; false: it only keeps people from being told."""


class Notifiers(Model):
    """Who is told. Nobody unless configured."""

    pagerduty: PagerDuty | None = None
    alertmanager: Alertmanager | None = None
    slack: Slack | None = None
    webhook: Webhook | None = None


class Pages(Model):
    """The texts of pages, in the template language of rule annotations.

    Beside `$labels` and `$value` they may name `$annotations`, `$source`, `$severity`, `$status` (firing or resolved),
    `$threshold` (the annotation of that name), `$started` and `$duration` (seconds), `$from` and `$to` (half an hour
    before the alert, and now or 5 minutes after its end, as Grafana and Kibana take it). Alertmanager is told a rule's
    own annotations, and the addresses as `runbook_url`, `dashboard_url` and `logs_url`.
    """

    summary: str = (
        '[{{ if eq $status "resolved" }}resolved{{ else }}{{ $severity }}{{ end }}] {{ $labels.alertname }} on '
        "{{ $source }}{{ with or $annotations.summary $annotations.description }}: {{ . }}{{ end }}"
    )
    """One line; such as `{{ $labels.alertname }} {{ $value | humanize }}, limit {{ $threshold }}`."""
    description: str = "{{ $annotations.description }}"
    """What stands below it. Empty: nothing."""
    runbook: str = ""
    """Address of the alert's runbook, such as `https://git.example.com/dsobs/{{ $annotations.runbook }}`. A rule's own
    annotation `runbook_url` wins. Empty: no link."""
    dashboard: str = ""
    """Address of the server's dashboard, such as
    `https://grafana.example.com/d/dsobs-server?var-instance={{ $source | urlquery }}&from={{ $from }}&to={{ $to }}`.
    Empty: no link."""
    logs: str = ""
    """Address of the server's log in that time, in Kibana or another. Empty: no link."""


class Inhibition(Model):
    """One fault, one page: while a source alert fires, its targets page nobody. Repair goes on."""

    shipped: bool = True
    """The `inhibit_rules` of the `alertmanager.yaml` that ships with dsobs."""
    files: tuple[Path, ...] = ()
    """Alertmanager configuration files whose `inhibit_rules` hold here too; the rest of them is not read."""


class Heartbeat(Model):
    """A sign of life for a dead man's switch, which pages when it stops."""

    url: Secret | None = None
    """Where to POST; by `file:PATH` or `env:NAME` if the address is secret. Unset: none is sent."""
    interval: PositiveSeconds = 60.0
    """Between two."""
    timeout: PositiveSeconds = 10.0
    """Deadline of one."""


class Mode(StrEnum):
    """Whether dsobs acts."""

    OBSERVE = "observe"
    ENFORCE = "enforce"


class Coordination(StrEnum):
    """How several sidecars of one workload keep out of each other's way."""

    LEASE = "lease"
    SINGLE = "single"
    UNCOORDINATED = "uncoordinated"


class Remediation(Model):
    """Repair, under guards."""

    mode: Mode = Mode.OBSERVE
    """`observe` logs exactly what `enforce` would do."""
    enabled: bool = True
    """The kill switch as a setting: false plans and does nothing."""
    kill_switch_file: Path = Path("/run/dsobs/kill")
    """While this file exists nothing is done."""
    coordination: Coordination = Coordination.LEASE
    """`lease`: a Kubernetes Lease, one for each workload, else observe only; `single`: this is the only sidecar of the
    workload; `uncoordinated`: several that do not talk. Both of the latter wait a random delay first. Docker and
    process engines are owned by one host, so `lease` counts as `single` there."""
    max_restarts_24h: int = Field(default=3, ge=0)
    """Budget: with this many restarts in 24 h, whoever made them, dsobs makes no further one."""
    cooldown: Seconds = 600.0
    """Between two actions on this engine."""
    confirm_hang: Seconds = 30.0
    """After the failed probe, so long without progress before a restart."""
    confirm_working: Seconds = 600.0
    """The same where CPU time or GPU show the engine at work: one long step, or a loop that never ends."""
    confirm_unresponsive: Seconds = 300.0
    """So long without one byte, and a second source that stands still, before a restart."""
    random_delay: Seconds | None = None
    """Upper bound of the random delay before an action where no Lease coordinates; 0: none. Unset: 2 s, in Kubernetes
    60 s, since other replicas may have the same fault at the same time."""
    fleet_breaker: Share = 0.3
    """With a Lease: share of the workload's replicas that may be unready at once, the one that is acted on among them;
    rounded down, one at least. The others are the minimum that stays ready. 1: no minimum."""
    fleet_max_actions: int = Field(default=5, ge=0)
    """With a Lease: actions on all replicas of the workload within `fleet_window`; after that many a person is
    paged."""
    fleet_window: PositiveSeconds = 3600.0
    """The time in which they are counted."""
    evidence_timeout: Seconds = 5.0
    """What gathering evidence may take; never holds up a restart for longer."""
    drain_timeout: Seconds = 30.0
    """How long a server that still works may finish its requests."""
    verify_timeout: PositiveSeconds = 3600.0
    """From the restart until ready, answered and moving; then a page."""
    down_grace: Seconds = 15.0
    """How long the engine's own runtime may take to bring a dead engine back before dsobs restarts it."""


class State(Model):
    """What is kept on disk."""

    directory: Path = Path("/var/lib/dsobs")
    """Ledger, alerts, outbox, flight recorder. Not writable: alerts and pages from memory, no action. Each dsobs needs
    one of its own: a second one on the same folder does not start."""
    recorder_max_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Size of the flight recorder; 0 switches it off."""
    incident_max_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Size of all incident bundles; the oldest go first."""


class Api(Model):
    """dsobs's own HTTP server."""

    listen: ListenAddress = "127.0.0.1:9940"
    """Address and port; `0.0.0.0:9940` to be scraped from elsewhere."""
    control_token: Secret | None = None
    """Bearer token of the endpoints that change something. Unset: they are off."""
    native_metrics: bool = False
    """Pass the engine's own metrics through on /metrics."""
    log_lines: int = Field(default=100, ge=0, le=1000)
    """Last lines of the engine's log and of dsobs's own that the status page shows, without keys, addresses and
    prompts; 0: none."""


class Log(Model):
    """dsobs's own log, on stderr."""

    format: Literal["auto", "text", "json"] = "auto"
    """`auto`: text at a terminal, JSON else."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe line that is written."""


class Reload(Model):
    """When the settings and the files that they name are read again. SIGHUP and `POST /-/reload` always do."""

    interval: Seconds = 5.0
    """Between two looks whether one of the files has changed; 0: nobody looks."""


class Config(Model):
    """All settings."""

    target: Target = Target()
    hang: Hang = Hang()
    startup: Startup = Startup()
    runtime: RuntimeSettings = RuntimeSettings()
    gpu: Gpu = Gpu()
    host: Host = Host()
    rules: Rules = Rules()
    queries: Queries = Queries()
    notifiers: Notifiers = Notifiers()
    pages: Pages = Pages()
    inhibition: Inhibition = Inhibition()
    heartbeat: Heartbeat = Heartbeat()
    remediation: Remediation = Remediation()
    scaling: Scaling = Scaling()
    state: State = State()
    logs: Logs = Logs()
    otlp: Otlp | None = None
    api: Api = Api()
    log: Log = Log()
    reload: Reload = Reload()

    @property
    def probes_enabled(self) -> bool:
        """Synthetic requests go out: switched on, or `auto` and somebody is told or enforce is on."""
        if self.hang.probe is ProbeMode.AUTO:
            told = any(getattr(self.notifiers, name) is not None for name in Notifiers.model_fields)
            return told or self.remediation.mode is Mode.ENFORCE
        return self.hang.probe is ProbeMode.ON
