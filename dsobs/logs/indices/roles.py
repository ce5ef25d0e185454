"""Roles with the rights that each task needs and no other."""

from typing import Any

from dsobs.config.logs import Elasticsearch
from dsobs.logs.indices.templates import STREAMS

WRITER, READER, SETUP = "dsobs_logs_writer", "dsobs_logs_reader", "dsobs_logs_setup"


def roles(settings: Elasticsearch) -> dict[str, dict[str, Any]]:
    """Role name → its definition, as `PUT /_security/role/NAME` takes it.

    The writer may add documents and, by adding the first one, have a data stream made from its template; it may not
    read, change or delete any. The reader may search. The one for `dsobs logs setup` may put templates, and see
    whether `logs.elasticsearch.index` is an index already.
    """
    names = [STREAMS, settings.index] if settings.index else [STREAMS]

    def indices(*privileges: str) -> list[dict[str, Any]]:
        return [{"names": list(names), "privileges": list(privileges)}]

    cluster = ["manage_index_templates", *(["manage_ilm"] if settings.lifecycle == "ilm" else [])]
    return {
        WRITER: {"cluster": [], "indices": indices("create_doc", "auto_configure")},
        READER: {"cluster": [], "indices": indices("read", "view_index_metadata")},
        SETUP: {"cluster": cluster, "indices": indices("view_index_metadata")},
    }
