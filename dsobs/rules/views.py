"""Groups, rules and alerts in the form of Prometheus' API (/api/v1/rules, /api/v1/alerts)."""

import datetime
import math
from typing import Any

from dsobs.model.alert import AlertState
from dsobs.rules.files import AlertRule
from dsobs.rules.states import GroupState, RuleState


def group_view(group: GroupState) -> dict[str, Any]:
    return {
        "name": group.group.name,
        "file": group.group.file,
        "interval": group.interval,
        "limit": group.group.limit,
        "rules": [rule_view(state) for state in group.rules],
        "evaluationTime": group.seconds,
        "lastEvaluation": _rfc3339(group.evaluated_at),
    }


def rule_view(state: RuleState) -> dict[str, Any]:
    rule = state.rule
    view: dict[str, Any] = {"name": rule.name, "query": rule.expr}
    if isinstance(rule, AlertRule):
        states = {active.state for active in state.active.values()}
        present = next((s.value for s in (AlertState.FIRING, AlertState.PENDING) if s in states), "inactive")
        view |= {
            "state": "unknown" if state.evaluated_at is None else present,
            "duration": rule.for_seconds,
            "keepFiringFor": rule.keep_firing_seconds,
            "labels": {name: template.text for name, template in rule.labels},
            "annotations": {name: template.text for name, template in rule.annotations},
            "alerts": alert_views(state),
            "type": "alerting",
        }
    else:
        view |= {"labels": dict(rule.labels), "type": "recording"}
    view |= {
        "health": state.health,
        "evaluationTime": state.seconds,
        "lastEvaluation": _rfc3339(state.evaluated_at),
    }
    if state.last_error:
        view["lastError"] = state.last_error
    return view


def alert_views(state: RuleState) -> list[dict[str, Any]]:
    views: list[dict[str, Any]] = []
    for active in state.active.values():
        if active.state is AlertState.RESOLVED:
            continue
        view: dict[str, Any] = {
            "labels": dict(active.labels),
            "annotations": dict(active.annotations),
            "state": active.state.value,
            "activeAt": _rfc3339(active.active_at),
            "value": _shortest_exponent(active.value),
        }
        if active.kept_since is not None:
            view["keepFiringSince"] = _rfc3339(active.kept_since)
        views.append(view)
    return views


def _shortest_exponent(value: float) -> str:
    """As Go's `strconv.FormatFloat(value, 'e', -1, 64)`."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    for digits in range(17):
        text = f"{value:.{digits}e}"
        if float(text) == value:
            return text
    return repr(value)


def _rfc3339(moment: float | None) -> str:
    if moment is None:
        return "0001-01-01T00:00:00Z"
    stamp = datetime.datetime.fromtimestamp(moment, tz=datetime.UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
