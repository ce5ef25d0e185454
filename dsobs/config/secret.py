"""Secrets: given by reference to a file or an environment variable, read when used, never printed."""

import os
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


class SecretError(Exception):
    """The file or variable of a secret is not there or empty; the message names it."""


class Secret:
    """`file:PATH`, `env:NAME`, or the value itself. `str()` and `repr()` give the reference or stars, never the value.

    Raises ValueError when there is nothing behind `file:` or `env:`.
    """

    def __init__(self, reference: str) -> None:
        if reference in ("", "file:", "env:"):
            raise ValueError("names no secret; write file:PATH or env:NAME")
        self._reference = reference

    @property
    def is_literal(self) -> bool:
        """The value itself was given, no reference to it."""
        return not self._reference.startswith(("file:", "env:"))

    def reveal(self) -> str:
        """The value, read anew so that it may rotate, without surrounding white space; SecretError if there is none."""
        kind, _, rest = self._reference.partition(":")
        if kind == "file":
            try:
                value = Path(rest).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SecretError(f"secret file {rest}: {error.strerror}") from error
            except ValueError as error:
                raise SecretError(f"secret file {rest} is no UTF-8 text") from error
            if not value:
                raise SecretError(f"secret file {rest} is empty")
            return value
        if kind == "env":
            value = os.environ.get(rest, "").strip()
            if not value:
                raise SecretError(f"secret environment variable {rest} is not set")
            return value
        return self._reference

    def handed_on(self) -> str:
        """What makes the same secret in a child of dsobs, which gets it through a pipe; never for people's eyes."""
        return self._reference

    def __str__(self) -> str:
        return "********" if self.is_literal else self._reference

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._reference == self._reference

    def __hash__(self) -> int:
        return hash(self._reference)

    @classmethod
    def _accept(cls, value: object) -> "Secret":
        if isinstance(value, Secret):
            return value
        if isinstance(value, str):
            return cls(value)
        raise ValueError("is no text; write file:PATH or env:NAME")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._accept, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}
