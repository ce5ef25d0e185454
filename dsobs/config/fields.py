"""What settings are made of: the base of all models, and kinds of values that several of them share."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from dsobs.config.duration import PATTERN, parse_duration
from dsobs.regex import RegexError, compile_regex


def _address(value: str) -> str:
    """An http(s) address without credentials; ValueError without the address itself, which may hold some."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("has no valid host and port; write http://HOST:PORT") from None
    if "@" in value:
        raise ValueError("holds a user name or password, which would be printed; leave it out and use a secret")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"\s", value):
        raise ValueError(f"{value!r} is no http:// or https:// address; write http://HOST:PORT")
    return value


def _alertmanager_address(value: str) -> str:
    """Its address, with a path prefix if it has one; the API's paths are added to it."""
    parts = urlsplit(_address(value))
    api = re.search(r"/api/v[12](/.*)?$", parts.path)
    if api is not None or parts.query or parts.fragment:
        base = f"{parts.scheme}://{parts.netloc}{parts.path[: api.start()] if api else parts.path}"
        raise ValueError(f"{value!r} is an address of its API, which dsobs adds by itself; write {base}")
    return value


def _base_address(value: str) -> str:
    parts = urlsplit(_address(value))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{value!r} has a path; write {parts.scheme}://{parts.netloc}")
    return value


def _listen(value: str) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]*):(\d{1,5})", value)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"{value!r} is no address and port; write 127.0.0.1:9940")
    return value


def _pod(value: str) -> str:
    if value and not re.fullmatch(r"[a-z0-9.-]+/[a-z0-9.-]+", value):
        raise ValueError(f"{value!r} is no pod; write NAMESPACE/NAME")
    return value


def _gpu_source(value: str) -> str:
    return value if value == "local" else _base_address(value)


def _docker_host(value: str) -> str:
    if not re.match(r"(unix:///|tcp://[^/@\s]+|https?://[^/@\s]+)", value):
        raise ValueError("is no address of Docker's API; write unix:///var/run/docker.sock or tcp://HOST:PORT")
    return value


def _label_pair(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*=.+", value, re.DOTALL):
        raise ValueError(f"{value!r} is no label; write NAME=VALUE, such as cluster=eu-1")
    return value


def _label_matcher(value: str) -> str:
    match = re.fullmatch(r"\s*[a-zA-Z_][a-zA-Z0-9_]*\s*(=~|!~|!=|=)(.*)", value, re.DOTALL)
    if match is None:
        raise ValueError(f'{value!r} is no matcher; write name=value, name!=value, name=~"regex" or name!~"regex"')
    if "~" in match[1]:
        try:
            compile_regex(match[2].strip().strip('"'))
        except RegexError as error:
            raise ValueError(f"{value!r} holds a bad regular expression: {error}") from error
    return value


def _log_path(value: str) -> str:
    if not re.fullmatch(r"([a-z][a-z0-9_-]*:)?[^:\s].*", value, re.DOTALL) or "\0" in value:
        raise ValueError(
            f"{value!r} is no file name pattern; write PATTERN or FORMAT:PATTERN, such as /var/log/vllm/*.log"
        )
    if value.rpartition(":")[2] == "-":
        raise ValueError(f"{value!r} is stdin, which only `dsobs logs ship --from -` reads; write a file name pattern")
    return value


def _index_name(value: str) -> str:
    bad = value and (value != value.lower() or re.search(r'[\\/*?"<>| ,#:]', value) or value[0] in "-_+.")
    if bad or len(value.encode()) > 255:
        raise ValueError(f"{value!r} is no index name; write small letters, digits, - and _, such as deepseek-logs")
    return value


def _namespace(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._]{0,99}", value):
        raise ValueError(f"{value!r} is no namespace; write at most 100 small letters, digits, . and _")
    return value


def _schema(minimum: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "number", minimum: 0}, {"type": "string", "pattern": PATTERN}]})


Duration = BeforeValidator(parse_duration)
Seconds = Annotated[float, Duration, Field(ge=0, allow_inf_nan=False), _schema("minimum")]
PositiveSeconds = Annotated[float, Duration, Field(gt=0, allow_inf_nan=False), _schema("exclusiveMinimum")]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
BaseAddress = Annotated[
    str, AfterValidator(_base_address), Field(json_schema_extra={"pattern": r"^https?://[^/@\s]+/?$"})
]
Address = Annotated[str, AfterValidator(_address), Field(json_schema_extra={"pattern": r"^https?://[^@\s]+$"})]
AlertmanagerAddress = Annotated[
    str, AfterValidator(_alertmanager_address), Field(json_schema_extra={"pattern": r"^https?://[^@\s?#]+$"})
]
LabelPair = Annotated[
    str, AfterValidator(_label_pair), Field(json_schema_extra={"pattern": r"^[a-zA-Z_][a-zA-Z0-9_]*=.+$"})
]
LabelMatcher = Annotated[
    str, AfterValidator(_label_matcher), Field(json_schema_extra={"pattern": r"^[a-zA-Z_][a-zA-Z0-9_]*(=~|!~|!=|=).*$"})
]
ListenAddress = Annotated[
    str, AfterValidator(_listen), Field(json_schema_extra={"pattern": r"^(\[[0-9a-fA-F:]+\]|[^:\s]*):\d{1,5}$"})
]
PodName = Annotated[str, AfterValidator(_pod)]
GpuSource = Annotated[
    str, AfterValidator(_gpu_source), Field(json_schema_extra={"pattern": r"^(local|https?://[^/@\s]+/?)$"})
]
DockerHost = Annotated[str, AfterValidator(_docker_host)]
LogPath = Annotated[str, AfterValidator(_log_path), Field(json_schema_extra={"pattern": r"^([a-z][a-z0-9_-]*:)?\S.*$"})]
IndexName = Annotated[str, AfterValidator(_index_name)]
Namespace = Annotated[
    str, AfterValidator(_namespace), Field(json_schema_extra={"pattern": r"^[a-z0-9][a-z0-9._]{0,99}$"})
]
Severity = Literal["critical", "error", "warning", "info"]
Severities = Annotated[tuple[Severity, ...], Field(min_length=1)]


class Model(BaseModel):
    """Base of all: frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
