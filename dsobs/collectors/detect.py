"""Which engine this is: by its page, or by the name that the settings give."""

from dsobs import plugins
from dsobs.model.engine import EngineAdapter
from dsobs.model.samples import Page

_GROUP = "dsobs.engines"


def adapters() -> list[EngineAdapter]:
    """One new adapter of each engine there is, by name."""
    return [plugins.load(_GROUP, name)() for name in plugins.available(_GROUP)]


def detect(page: Page) -> EngineAdapter | None:
    """The engine whose page this is; None if no adapter knows it."""
    return next((adapter for adapter in adapters() if adapter.recognizes(page)), None)


def named(name: str) -> EngineAdapter:
    """The adapter of the engine that `target.engine` names; LookupError names those there are."""
    adapter: EngineAdapter = plugins.load(_GROUP, name)()
    return adapter
