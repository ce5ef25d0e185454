"""Writes the page and its parts from a `Status`. Imports Jinja: only for those who ask for the page."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dsobs.model.status import Charts, Status

STATIC: Mapping[str, str] = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "idiomorph.min.js": "text/javascript",
    "uPlot.iife.min.js": "text/javascript",
    "uPlot.min.css": "text/css",
    "icon.svg": "image/svg+xml",
}
"""Name → media type of the files that belong to the page."""
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of everything that belongs to it. Nothing of the page comes from, or is told to, another host."""


def static(name: str) -> bytes:
    """One of those files."""
    return (files("dsobs.api.page") / "static" / name).read_bytes()


def _parts(status: Status) -> dict[str, Any]:
    """Part of the page → what it shows; a part is written anew where that has changed."""
    return {
        "health": (status.state, status.headline, status.facts, status.start_up, status.next_text),
        "alerts": status.alerts,
        "indicators": status.indicators,
        "repair": (status.guards, status.next_steps, status.next_text),
        "incidents": (status.incidents, status.incidents_left_out),
        "unknown": status.unknown,
        "log": status.log_tails,
        "settings": (status.settings, status.reload_error),
    }


def time_of(at: float, form: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    """A time for people."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime(form)
    except (OverflowError, OSError, ValueError):
        return "unknown time"


def _time(at: float) -> Markup:
    """A `<time>`, to which the page's script adds how long ago that is."""
    return Markup('<time datetime="{}">{}</time>').format(time_of(at, "%Y-%m-%dT%H:%M:%SZ"), time_of(at))


def _link(text: str) -> str:
    """An address that may be followed; empty for anything else, such as javascript: or a path in the repository."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    return text if parts.scheme in ("http", "https") and parts.netloc else ""


class Writer:
    """Remembers what each part showed, so that only what has changed is written."""

    def __init__(self) -> None:
        """Compiles the templates, which takes some 50 ms: not to be made in the event loop."""
        self._jinja = Environment(
            loader=PackageLoader("dsobs.api.page"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._jinja.filters |= {"time": _time, "link": _link}
        digests = {name: hashlib.sha256(static(name)).hexdigest()[:12] for name in STATIC}
        self._jinja.globals["static"] = lambda name: f"static/{digests[name]}/{name}"
        self.assets = hashlib.sha256("".join(digests.values()).encode()).hexdigest()[:12]
        """Changes with the files: a page of other ones is loaded anew."""
        self._templates = {name: self._jinja.get_template(f"{name}.html") for name in ("page", *_PART_NAMES)}
        self._shown: dict[str, Any] = {}
        self._written: dict[str, Markup] = {}

    def parts(self, status: Status) -> tuple[dict[str, Markup], set[str]]:
        """HTML of each part, and the names of those that have changed since the last call."""
        changed = set()
        for name, shows in _parts(status).items():
            if name not in self._written or self._shown[name] != shows:
                html = Markup(self._templates[name].render(status=status))  # noqa: S704 - Jinja has escaped it
                if html != self._written.get(name):
                    self._written[name] = html
                    changed.add(name)
                self._shown[name] = shows
        return dict(self._written), changed

    def page(self, status: Status, parts: Mapping[str, Markup], *, run: str, number: int) -> bytes:
        """The whole page. `run`, `number`: from which events go on."""
        page = self._templates["page"].render(status=status, parts=parts, run=run, number=number, assets=self.assets)
        return page.encode("utf-8", "replace")


_PART_NAMES = ("health", "alerts", "indicators", "repair", "incidents", "unknown", "log", "settings")


def event(kind: str, data: Mapping[str, Any]) -> bytes:
    """One server-sent event: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


def charts_json(charts: Charts) -> bytes:
    """For the page's script."""
    return orjson.dumps(charts)
