"""The texts of pages, from the templates of the settings."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dsobs.config import Config, Finding
from dsobs.model.alert import Alert, AlertState
from dsobs.model.notification import Notification
from dsobs.notifiers.messages import severity_of
from dsobs.rules.template_functions import TemplateError
from dsobs.rules.templates import Data, Template

log = logging.getLogger(__name__)

VARIABLES = ("$annotations", "$duration", "$severity", "$source", "$started", "$status", "$threshold")
"""Beside those of a rule's annotation: `$labels`, `$value`."""

_DURATION = Template("{{ $duration | humanizeDuration }}", VARIABLES)


@dataclass(frozen=True, slots=True)
class PageTexts:
    """Parsed templates."""

    summary: Template
    description: Template

    @classmethod
    def of(cls, config: Config) -> "PageTexts":
        """From the settings; TemplateError where one can't be parsed."""
        pages = config.pages
        return cls(Template(pages.summary, VARIABLES), Template(pages.description, VARIABLES))

    def on(self, notification: Notification, alert: Alert, now: float) -> Notification:
        """The notification with these texts; one that can't be rendered stays as it was."""
        data = Data(alert.labels, alert.value, more=variables(alert, notification.source, now))
        summary = _rendered("pages.summary", self.summary, data) or notification.summary
        description = _rendered("pages.description", self.description, data)
        annotations = dict(notification.annotations)
        if description:
            annotations["description"] = description
        details = {**notification.details, "duration": _DURATION.render(data)}
        return replace(notification, summary=summary, annotations=annotations, details=details)


def variables(alert: Alert, source: str, now: float) -> dict[str, Any]:
    """What a page's template may name. Times and durations are seconds."""
    ended = alert.resolved_at if alert.state is AlertState.RESOLVED and alert.resolved_at is not None else None
    return {
        "$annotations": alert.annotations,
        "$duration": max(0.0, (now if ended is None else ended) - alert.active_at),
        "$severity": severity_of(alert.severity),
        "$source": source,
        "$started": alert.active_at,
        "$status": "firing" if alert.state is AlertState.FIRING else "resolved",
        "$threshold": alert.annotations.get("threshold", ""),
    }


def _rendered(name: str, template: Template, data: Data) -> str:
    try:
        return " ".join(template.render(data).split())
    except TemplateError as error:
        log.error("%s can't be used for %s, its page has the plain text: %s", name, data.labels.get("alertname"), error)
        return ""


def bad_templates(config: Config) -> Iterator[Finding]:
    """What is wrong with them."""
    for name in ("summary", "description"):
        try:
            Template(getattr(config.pages, name), VARIABLES)
        except TemplateError as error:
            key = f"pages.{name}"
            yield Finding(key, (key,), f"is no template: {error}")
