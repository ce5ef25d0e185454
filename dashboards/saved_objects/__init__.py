"""Kibana's saved objects as code: `make generate` writes dashboards/kibana/*.ndjson from it."""

import json
from collections.abc import Callable, Mapping, Sequence

from dashboards.saved_objects.contents import deepseek_logs, streams
from dashboards.saved_objects.objects import Object

FILES: Mapping[str, Callable[[], Sequence[Object]]] = {"dsobs": streams, "deepseek-logs": deepseek_logs}
"""File name in dashboards/kibana → its objects, each after those that it names."""


def text(name: str) -> str:
    """The file: an object a line."""
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in FILES[name]())
