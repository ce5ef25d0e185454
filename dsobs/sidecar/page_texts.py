"""The texts of pages, from the templates of the settings."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from dsobs.config import Config, Finding
from dsobs.model.alert import Alert, AlertState
from dsobs.model.notification import Notification
from dsobs.notifiers.messages import iso_time, severity_of
from dsobs.rules.go_text import TemplateError
from dsobs.rules.templates import Data, Template

log = logging.getLogger(__name__)

VARIABLES = (
    "$annotations", "$duration", "$from", "$severity", "$source", "$started", "$status", "$threshold", "$to",
)  # fmt: skip
"""Beside those of a rule's annotation: `$labels`, `$value`."""

BEFORE_SECONDS = 1800.0
AFTER_SECONDS = 300.0
"""What dashboards and logs show beside the time of the alert itself."""

LINKS = (
    ("runbook", "runbook_url", "Runbook"),
    ("dashboard", "dashboard_url", "Dashboard"),
    ("logs", "logs_url", "Logs"),
)
"""Setting of `pages`, the annotation that Alertmanager is told, and the text of the link."""

_SCHEMES = ("http://", "https://")

_DURATION = Template("{{ $duration | humanizeDuration }}", VARIABLES)


@dataclass(frozen=True, slots=True)
class PageTexts:
    """Parsed templates."""

    summary: Template
    description: Template
    links: tuple[tuple[str, Template], ...] = ()
    """Annotation and template of each address."""

    @classmethod
    def of(cls, config: Config) -> "PageTexts":
        """From the settings; TemplateError where one can't be parsed."""
        pages = config.pages
        links = tuple(
            (annotation, Template(text, VARIABLES)) for name, annotation, _ in LINKS if (text := getattr(pages, name))
        )
        return cls(Template(pages.summary, VARIABLES), Template(pages.description, VARIABLES), links)

    def on(self, notification: Notification, alert: Alert, now: float) -> Notification:
        """The notification with these texts; one that can't be rendered stays as it was."""
        data = Data(alert.labels, alert.value, more=variables(alert, notification.source, now))
        summary = _rendered("pages.summary", self.summary, data) or notification.summary
        description = _rendered("pages.description", self.description, data)
        annotations = dict(notification.annotations)
        if description:
            annotations["description"] = description
        details = {**notification.details, "duration": _DURATION.render(data)}
        addresses = self.addresses(alert, notification.source, now)
        links = tuple((addresses[annotation], text) for _, annotation, text in LINKS if annotation in addresses)
        others = tuple(link for link in notification.links if link not in links)
        return replace(notification, summary=summary, annotations=annotations, details=details, links=(*links, *others))

    def addresses(self, alert: Alert, source: str, now: float, *, quiet: bool = False) -> dict[str, str]:
        """By annotation: where its runbook, dashboard and logs are. The rule's own annotation wins.

        One that can't be rendered, or is no address then, is left out; unless `quiet` an error in the log says so.
        """
        given = {
            annotation: alert.annotations[annotation]
            for _, annotation, _ in LINKS
            if alert.annotations.get(annotation, "").startswith(_SCHEMES)
        }
        data = Data(alert.labels, alert.value, more=variables(alert, source, now))
        for annotation, template in self.links:
            if annotation not in given:
                # Every character that an address may have stays; what is between, such as a blank, is escaped.
                address = quote(_rendered(annotation, template, data, quiet=quiet), safe="!#$%&'()*+,/:;=?@[]~")
                if address.startswith(_SCHEMES):
                    given[annotation] = address
        return given


def variables(alert: Alert, source: str, now: float) -> dict[str, Any]:
    """What a page's template may name. Times and durations are seconds."""
    ended = alert.resolved_at if alert.state is AlertState.RESOLVED and alert.resolved_at is not None else None
    return {
        "$annotations": alert.annotations,
        "$duration": max(0.0, (now if ended is None else ended) - alert.active_at),
        "$from": iso_time(alert.active_at - BEFORE_SECONDS),
        "$severity": severity_of(alert.severity),
        "$source": source,
        "$started": alert.active_at,
        "$status": "firing" if alert.state is AlertState.FIRING else "resolved",
        "$threshold": alert.annotations.get("threshold", ""),
        "$to": "now" if ended is None else iso_time(ended + AFTER_SECONDS),
    }


def _rendered(name: str, template: Template, data: Data, *, quiet: bool = False) -> str:
    try:
        return " ".join(template.render(data).split())
    except TemplateError as error:
        if not quiet:
            log.error("%s can't be used for %s, its page goes without: %s", name, data.labels.get("alertname"), error)
        return ""


def bad_templates(config: Config) -> Iterator[Finding]:
    """What is wrong with them."""
    for name in ("summary", "description", *(name for name, _, _ in LINKS)):
        key, text = f"pages.{name}", getattr(config.pages, name)
        try:
            Template(text, VARIABLES)
        except TemplateError as error:
            yield Finding(key, (key,), f"is no template: {error}")
            continue
        if text and name not in ("summary", "description") and not text.startswith(_SCHEMES):
            yield Finding(key, (key,), "must begin with http:// or https://, such as https://grafana.example.com/d/…")
