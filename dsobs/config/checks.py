"""What no single setting can tell: settings that contradict each other, and secrets and files that are not there."""

from collections.abc import Iterator
from typing import NamedTuple

from dsobs.config.duration import format_duration
from dsobs.config.models import Config, Mode
from dsobs.config.secret import Secret, SecretError
from dsobs.config.settings import Key, Kind, settings, value_of

LONGEST_WINDOW_SECONDS = 6 * 3600.0
"""What the sidecar's store holds."""
LEAST_SCRAPES = 5
"""In the window of a rule, so that a missed one does not silence it."""


class Finding(NamedTuple):
    """Something wrong with several settings together."""

    key: str
    """The setting to change, dotted."""
    because: tuple[str, ...]
    """All that take part, dotted; the first that somebody wrote gives the place."""
    message: str


def contradictions(config: Config) -> Iterator[Finding]:
    """Settings that are each right and together wrong."""
    runtime, hang, target = config.runtime, config.hang, config.target
    if runtime.name == "docker" and not runtime.container:
        yield Finding(
            "runtime.container",
            ("runtime.name",),
            "is empty, and runtime.name is docker; write the name or id of the engine's container",
        )
    if config.remediation.mode is Mode.ENFORCE and runtime.name == "none":
        yield Finding(
            "remediation.mode",
            ("remediation.mode", "runtime.name"),
            "is enforce, and with runtime.name none nothing can be restarted; name a runtime or write observe",
        )
    yield from _alertmanager(config)
    yield from _elasticsearch(config)
    yield from _otlp(config)
    yield from _latency_window(config)
    for low, high in (
        ("hang.min_threshold", "hang.max_threshold"),
        ("hang.max_threshold", "hang.unresponsive_after"),
        ("hang.probe_timeout", "hang.unresponsive_after"),
        ("target.scrape_timeout", "hang.unresponsive_after"),
    ):
        least, most = _seconds(config, low), _seconds(config, high)
        if least > most:
            yield Finding(
                low,
                (low, high),
                f"is {format_duration(least)}, more than {high} of {format_duration(most)}; lower it or raise that",
            )
    if 0 < hang.idle_probe_interval <= hang.probe_timeout:
        yield Finding(
            "hang.idle_probe_interval",
            ("hang.idle_probe_interval", "hang.probe_timeout"),
            f"is {format_duration(hang.idle_probe_interval)}, not more than hang.probe_timeout of "
            f"{format_duration(hang.probe_timeout)}; raise it, or write 0 to probe no idle engine",
        )
    if hang.min_threshold < 2 * target.scrape_interval:
        yield Finding(
            "hang.min_threshold",
            ("hang.min_threshold", "target.scrape_interval"),
            f"is {format_duration(hang.min_threshold)}, less than two scrapes of "
            f"{format_duration(target.scrape_interval)}, so that every gap would be a stall; "
            f"write {format_duration(2 * target.scrape_interval)} or more, or scrape more often",
        )


def _latency_window(config: Config) -> Iterator[Finding]:
    key, window, scrapes = "rules.latency_p99.window", config.rules.latency_p99.window, config.target.scrape_interval
    if window < LEAST_SCRAPES * scrapes:
        yield Finding(
            key,
            (key, "target.scrape_interval"),
            f"is {format_duration(window)}, less than {LEAST_SCRAPES} scrapes of {format_duration(scrapes)}, in which "
            f"no latency can be seen; write {format_duration(LEAST_SCRAPES * scrapes)} or more, or scrape more often",
        )
    if window > LONGEST_WINDOW_SECONDS:
        yield Finding(
            key,
            (key,),
            f"is {format_duration(window)}, and samples are kept for {format_duration(LONGEST_WINDOW_SECONDS)}; write "
            f"{format_duration(LONGEST_WINDOW_SECONDS)} or less",
        )


def _elasticsearch(config: Config) -> Iterator[Finding]:
    elastic = config.logs.elasticsearch
    if elastic is None:
        if config.logs.edge.enabled:
            name = "logs.edge.enabled"
            yield Finding(
                name, (name,), "is true without logs.elasticsearch, where records go on to; set its urls or write false"
            )
        return
    if not any(url.startswith("https:") for url in elastic.urls):
        for name in (f"logs.elasticsearch.{file}" for file in ("ca_file", "cert_file") if getattr(elastic, file)):
            yield Finding(name, (name,), "is set, and no address of logs.elasticsearch.urls is https; write https://")
    head = "logs.elasticsearch"
    given = [name for name in ("api_key", "bearer_token", "user") if getattr(elastic, name)]
    if len(given) > 1:
        both = tuple(f"{head}.{name}" for name in given)
        yield Finding(both[1], both[1:], f"is set, and {both[0]} too; keep one of them")
    for name, other in (("password", "user"), ("key_file", "cert_file")):
        if getattr(elastic, name) and not getattr(elastic, other):
            yield Finding(f"{head}.{name}", (f"{head}.{name}",), f"is set without {head}.{other}; set both or neither")


def _otlp(config: Config) -> Iterator[Finding]:
    for head, receiver in (("otlp", config.otlp), ("logs.otlp", config.logs.otlp)):
        if receiver is None:
            continue
        for name in (f"{head}.{file}" for file in ("ca_file", "cert_file") if getattr(receiver, file)):
            if not receiver.endpoint.startswith("https:"):
                yield Finding(name, (name,), f"is set, and {head}.endpoint is no https address; write https://")
        if receiver.key_file and not receiver.cert_file:
            yield Finding(f"{head}.key_file", (f"{head}.key_file",), f"is set without {head}.cert_file; set both")
    if config.logs.otlp is not None and config.logs.elasticsearch is not None:
        yield Finding(
            "logs.otlp.endpoint",
            ("logs.otlp.endpoint", "logs.elasticsearch.urls"),
            "is set, and logs.elasticsearch.urls too: each record is acknowledged by one of them; keep one",
        )
    if config.otlp is not None and not (config.otlp.metrics or config.otlp.traces):
        yield Finding(
            "otlp.endpoint",
            ("otlp.endpoint", "otlp.metrics", "otlp.traces"),
            "is set, and both otlp.metrics and otlp.traces are false; set one of them, or remove otlp",
        )


def _alertmanager(config: Config) -> Iterator[Finding]:
    settings, pagerduty = config.notifiers.alertmanager, config.notifiers.pagerduty
    if settings is None:
        if pagerduty is not None and pagerduty.fallback:
            yield Finding(
                "notifiers.pagerduty.fallback",
                ("notifiers.pagerduty.fallback",),
                "is true, and without notifiers.alertmanager there is nothing to fall back from; write false",
            )
        return
    section = "notifiers.alertmanager"
    if pagerduty is not None and pagerduty.fallback and not set(pagerduty.severities) <= set(settings.severities):
        yield Finding(
            f"{section}.severities",
            ("notifiers.pagerduty.fallback", f"{section}.severities", "notifiers.pagerduty.severities"),
            "leaves out some of notifiers.pagerduty.severities, which as a fallback would never page them; add them",
        )
    if settings.bearer_token is not None and settings.basic_user:
        yield Finding(
            f"{section}.bearer_token",
            (f"{section}.bearer_token", f"{section}.basic_user"),
            f"is set, and {section}.basic_user too; keep one of them",
        )
    if (settings.basic_password is not None) != bool(settings.basic_user):
        yield Finding(
            f"{section}.basic_user",
            (f"{section}.basic_user", f"{section}.basic_password"),
            f"and {section}.basic_password belong together; set both or none",
        )
    if settings.key_file is not None and settings.cert_file is None:
        yield Finding(
            f"{section}.cert_file",
            (f"{section}.key_file",),
            f"is missing for {section}.key_file; name the certificate that the key belongs to",
        )
    if len({url.rstrip("/") for url in settings.urls}) < len(settings.urls):
        yield Finding(
            f"{section}.urls",
            (f"{section}.urls",),
            "names one address twice; each Alertmanager stands there once",
        )


def _seconds(config: Config, key: str) -> float:
    return float(value_of(config, tuple(key.split("."))))


_FILES = (
    "rules.files",
    "target.ca_file",
    "inhibition.files",
    "notifiers.alertmanager.ca_file",
    "notifiers.alertmanager.cert_file",
    "notifiers.alertmanager.key_file",
)
"""Settings that name files which must be there."""
SECRET_ADDRESSES = ("notifiers.webhook.url", "notifiers.slack.url", "heartbeat.url")
"""Secrets that may be written out: addresses, of which only some hold a secret."""


def unready(config: Config) -> Iterator[Finding]:
    """What is missing on this machine, now: secrets that can't be read or can't be right, files that are not there."""
    for key, setting in settings().items():
        value = value_of(config, key)
        if isinstance(value, Secret):
            yield from _unready_secret(key, value)
        elif setting.kind is Kind.PATH and ".".join(key) in _FILES:
            for path in (value or ()) if setting.is_list else filter(None, [value]):
                if not path.is_file():
                    yield Finding(".".join(key), (".".join(key),), f"there is no file {path}; write one that exists")


def _unready_secret(key: Key, secret: Secret) -> Iterator[Finding]:
    name = ".".join(key)
    try:
        value = secret.reveal()
    except SecretError as error:
        yield Finding(name, (name,), f"{error}; create it or point to another")
        return
    if key == ("notifiers", "pagerduty", "routing_key") and len(value) != 32:
        yield Finding(name, (name,), f"has {len(value)} characters and not 32; copy the integration key again")
    if name in SECRET_ADDRESSES and not value.startswith(("http://", "https://")):
        yield Finding(name, (name,), "is no http:// or https:// address; write where to POST")
