"""Results of queries as Prometheus writes them in JSON (util/jsonutil and web/api/v1/json_codec.go of Prometheus 3)."""

import math
from collections.abc import Iterable, Sequence

import orjson

from dsobs.model.samples import Sample
from dsobs.promql import Points, Result, Slice, Sliced
from dsobs.promql.numbers import text


def value_text(value: float) -> str:
    """Go's shortest form: with an exponent below 1e-6 and from 1e21 on."""
    size = abs(value)
    if size and (size < 1e-6 or size >= 1e21) and not math.isinf(size):
        digits, _, exponent = repr(value).partition("e")
        sign, number = exponent[0], exponent[1:].lstrip("0")
        # Go keeps two digits of a positive exponent and one of a negative one below 10.
        return f"{digits.removesuffix('.0')}e{sign}{number}"
    return text(value)


def time_text(milliseconds: int) -> str:
    """Seconds, to the millisecond."""
    seconds, rest = divmod(milliseconds, 1000)
    if milliseconds < 0 and rest:
        seconds, rest = seconds + 1, 1000 - rest
        return f"{'-' if not seconds else ''}{seconds}.{rest:03d}"
    return f"{seconds}.{rest:03d}" if rest else str(seconds)


def _points(times: Sequence[int], values: Sequence[float]) -> Iterable[str]:
    return (f'[{time_text(t)},"{value_text(v)}"]' for t, v in zip(times, values, strict=True))


_CHUNK = 1_000
"""Points that are written between two places where it may be interrupted."""


def encoded(result: Result, at: float, limit: int) -> Sliced[bytes]:
    """The whole answer; `at` is the time of an instant query, `limit` the most series (0: all)."""
    slice_ = Slice()
    now = round(at * 1000)
    value, warned = result.value, b""
    out = bytearray()
    if isinstance(value, list):
        series: list[Sample | Points] = [*value]
        if limit and len(series) > limit:
            series, warned = series[:limit], b',"warnings":["results truncated due to limit"]'
        for number, one in enumerate(series):
            out += (b"," if number else b"") + b'{"metric":' + orjson.dumps(dict(one.labels))
            if isinstance(one, Sample):
                out += f',"value":[{time_text(now)},"{value_text(one.value)}"]}}'.encode()
            else:
                out += b',"values":['
                for begin in range(0, len(one.times), _CHUNK):
                    end = begin + _CHUNK
                    out += b"," if begin else b""
                    out += ",".join(_points(one.times[begin:end], one.values[begin:end])).encode()
                    yield from slice_.over()
                out += b"]}"
            yield from slice_.over()
        out = bytearray(b"[") + out + b"]"
    else:
        shown = value if isinstance(value, str) else value_text(value)
        out += f"[{time_text(now)},".encode() + orjson.dumps(shown) + b"]"
    head = f'{{"status":"success","data":{{"resultType":"{result.kind}","result":'.encode()
    return head + bytes(out) + b"}" + warned + b"}"
