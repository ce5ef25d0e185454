"""JSON that can't fail on text from undecodable bytes."""

from typing import Any

import orjson


def json_bytes(value: Any) -> bytes:
    """`value` as JSON; a lone surrogate (from undecodable log bytes) becomes `?`: a page must not fail for it."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return orjson.dumps(_clean(value))


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
