"""Incidents as traces: one trace for each, a span for each step. Ids follow from the ledger's, so that a step that is
sent again after a restart of dsobs is the same span."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

INSTANT = ("page", "drain", "guard", "operator")
"""Kinds of steps that take no time of their own."""
_BEGUN = ("reserved", "opened")
_STATUS = {"failed": StatusCode.ERROR, "unknown": StatusCode.ERROR, "done": StatusCode.OK}
_MOST_TEXT = 4096


class Line(Protocol):
    """A line of the ledger."""

    @property
    def at(self) -> float:
        """Unix seconds."""

    @property
    def incident(self) -> str:
        """Its id."""

    @property
    def kind(self) -> str:
        """incident, evidence, restart, …"""

    @property
    def state(self) -> str:
        """opened, reserved, done, …"""

    @property
    def detail(self) -> Mapping[str, Any]:
        """What is known of it."""

    @property
    def id(self) -> int:
        """Of the line."""


def trace_id(incident: str) -> int:
    """128 bits, never 0."""
    return int.from_bytes(hashlib.sha256(b"dsobs incident " + incident.encode()).digest()[:16]) or 1


def span_id(incident: str, line: int) -> int:
    """64 bits, never 0; `line` 0 is the incident itself."""
    return int.from_bytes(hashlib.sha256(f"dsobs step {incident} {line}".encode()).digest()[:8]) or 1


def spans_of(
    line: Line,
    before: Sequence[Line],
    *,
    resource: Resource,
    scope: InstrumentationScope,
    attributes: Mapping[str, str],
) -> list[ReadableSpan]:
    """The spans that end with this `line`; `before` are the lines of its incident before it, oldest first.

    A line that begins something ends none. The span of a step begins where the ledger says so (`reserved_at`), else
    with the line before it; the incident's own begins with its first line and ends when it is closed.
    """
    if line.state in _BEGUN:
        return []
    closing = line.kind == "incident"
    begun = before[0].at if closing and before else _begun(line, before)
    text = str(line.detail.get("why") or line.detail.get("guard") or line.detail.get("reason") or "")[:_MOST_TEXT]
    status = Status(_STATUS.get(line.state, StatusCode.UNSET), text if line.state in ("failed", "unknown") else None)
    if closing:
        given_up = any(one.kind == "page" for one in before)
        status = Status(StatusCode.ERROR, "a person was paged") if given_up else Status(StatusCode.OK)
    own: dict[str, Any] = {**attributes, "dsobs.incident.id": line.incident}
    alerts = before[0].detail.get("alerts", ()) if before else ()
    if closing and alerts:
        own["dsobs.incident.alerts"] = [str(alert) for alert in alerts]
    if text:
        own["dsobs.step.reason"] = text
    if not closing:
        own |= {"dsobs.step.kind": line.kind, "dsobs.step.state": line.state}
    trace = trace_id(line.incident)
    root = SpanContext(trace, span_id(line.incident, 0), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    context = root
    if not closing:
        context = SpanContext(
            trace, span_id(line.incident, line.id), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
        )
    return [
        ReadableSpan(
            "incident" if closing else line.kind,
            context,
            None if closing else root,
            resource,
            own,
            kind=SpanKind.INTERNAL,
            status=status,
            start_time=int(min(begun, line.at) * 1e9),
            end_time=int(line.at * 1e9),
            instrumentation_scope=scope,
        )
    ]


def _begun(line: Line, before: Sequence[Line]) -> float:
    reserved = line.detail.get("reserved_at")
    if isinstance(reserved, int | float):
        return float(reserved)
    if line.kind in INSTANT or line.state in ("refused", "observed", "noted") or not before:
        return line.at
    return before[-1].at
