"""The queries of the dashboards, with Grafana's variables in place."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from dashboards.source import DASHBOARDS, document


class Asked(NamedTuple):
    """One query of one panel, or of a mark or variable."""

    dashboard: str
    panel: str
    query: Any
    """PromQL, or an Elasticsearch query as the dashboard has it."""
    elasticsearch: bool


def expanded(expr: str) -> str:
    """As Grafana asks it where everything is chosen: the variables' `All` is `.*`."""
    return re.sub(r"\$(cluster|namespace|tenant|instance|model)\b", ".*", expr).replace("$__rate_interval", "1m")


def asked() -> Iterator[Asked]:
    """Of all dashboards, in order."""
    for name in DASHBOARDS:
        made = document(name)
        for panel in made["panels"]:
            for target in panel.get("targets", []):
                if panel["datasource"]["type"] == "elasticsearch":
                    yield Asked(name, panel["title"], target, True)
                else:
                    yield Asked(name, panel["title"], expanded(target["expr"]), False)
        for mark in made["annotations"]["list"]:
            if "expr" in mark:
                yield Asked(name, f"mark: {mark['name']}", expanded(mark["expr"]), False)
