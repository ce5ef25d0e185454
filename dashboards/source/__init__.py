"""The Grafana dashboards as code: `make generate` writes dashboards/grafana/*.json from it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.source.actions import actions
from dashboards.source.fleet import fleet
from dashboards.source.gpu import gpu
from dashboards.source.latency import latency
from dashboards.source.logs import logs
from dashboards.source.server import server

DASHBOARDS: Mapping[str, Callable[[], Dashboard]] = {
    "fleet": fleet,
    "server": server,
    "gpu": gpu,
    "latency": latency,
    "actions": actions,
    "logs": logs,
}
"""File name in dashboards/grafana → what builds it. A new one is one entry."""


def document(name: str) -> dict[str, Any]:
    """One dashboard as Grafana reads it; panels are numbered in their order."""
    built = DASHBOARDS[name]().build()
    made: dict[str, Any] = json.loads(json.dumps(built, cls=JSONEncoder))
    for number, panel in enumerate(made["panels"], start=1):
        panel["id"] = number
    return made


def text(name: str) -> str:
    """The file."""
    return json.dumps(document(name), indent=1, ensure_ascii=False) + "\n"
