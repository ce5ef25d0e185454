"""Tells people: notifiers found by entry points, fed by one durable outbox."""

from typing import TYPE_CHECKING

from dsobs import plugins
from dsobs.config import models
from dsobs.model.notifier import Notifier

if TYPE_CHECKING:
    import aiohttp


def configured(settings: models.Notifiers, session: "aiohttp.ClientSession") -> list[Notifier]:
    """The notifiers that `settings` ask for, all on the caller's `session`; LookupError for one not installed."""
    found: list[Notifier] = []
    for name in type(settings).model_fields:
        section = getattr(settings, name)
        if section is not None:
            made = plugins.load("dsobs.notifiers", name)(section, session)
            found += made if isinstance(made, list) else [made]
    return found
