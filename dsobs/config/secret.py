"""Secrets: given by reference to a file or an environment variable, read when used, never printed."""

import os
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


class SecretError(Exception):
    """The file or variable of a secret is not there or empty; the message names it."""


class Secret:
    """`file:PATH`, `env:NAME`, or the value itself. `str()` and `repr()` give the reference or stars, never the value."""

    def __init__(self, reference: str) -> None:
        self._reference = reference

    def reveal(self) -> str:
        """The value, read anew so that it may rotate, without surrounding white space; SecretError if there is none."""
        kind, _, rest = self._reference.partition(":")
        if kind == "file":
            try:
                value = Path(rest).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SecretError(f"secret file {rest}: {error.strerror}") from error
            if not value:
                raise SecretError(f"secret file {rest} is empty")
            return value
        if kind == "env":
            value = os.environ.get(rest, "").strip()
            if not value:
                raise SecretError(f"secret environment variable {rest} is not set")
            return value
        return self._reference

    def __str__(self) -> str:
        return self._reference if self._reference.startswith(("file:", "env:")) else "********"

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._reference == self._reference

    def __hash__(self) -> int:
        return hash(self._reference)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from_text = core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), from_text]),
            serialization=core_schema.to_string_ser_schema(),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "description": "file:PATH or env:NAME"}
