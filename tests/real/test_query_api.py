"""dsobs' query API against a real Prometheus 3: the same samples in both, the same requests, the same answers."""

import asyncio
import http.client
import json
import math
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from dsobs.api.server import serve
from tests.api.conftest import MemorySource
from tests.real.prometheus import Prometheus, tool
from tests.real.promql_series import BEGIN, SECONDS, store_of, streams

pytestmark = pytest.mark.real("servers")
DEADLINE = 60.0
END = BEGIN + SECONDS
AT = ("time", str(BEGIN + 905))
SPAN = (("start", str(BEGIN)), ("end", str(END)))
FAR = (("start", str(BEGIN - 90_000)), ("end", str(END + 90_000)))
RANGE = (("start", str(BEGIN + 200)), ("end", str(BEGIN + 800)), ("step", "47"))
RUNNING = "vllm:num_requests_running"
MATCH = ("match[]", RUNNING)

Pairs = tuple[tuple[str, str], ...]

REQUESTS: list[tuple[str, Pairs]] = [
    ("query", (("query", RUNNING), AT)),
    ("query", (("query", f"sum by (engine) ({RUNNING})"), AT)),
    ("query", (("query", "rate(vllm:generation_tokens_total[5m])"), AT)),
    ("query", (("query", "histogram_quantile(0.99, rate(vllm:time_to_first_token_seconds_bucket[5m]))"), AT)),
    ("query", (("query", "nothing_there"), AT)),
    ("query", (("query", "1 / 3"), AT)),
    ("query", (("query", "1e-9 * 1.5"), AT)),
    ("query", (("query", "2 ^ 80"), AT)),
    ("query", (("query", "-1 / 0"), AT)),
    ("query", (("query", "0 / 0"), AT)),
    ("query", (("query", "time()"), ("time", "2023-11-14T22:28:25.125Z"))),
    ("query", (("query", "time()"), ("time", "2023-11-14T23:28:25.5+01:00"))),
    ("query", (("query", '"text"'), AT)),
    ("query", (("query", f"{RUNNING}[30s]"), AT)),
    ("query", (("query", f"max_over_time({RUNNING}[5m:30s])"), AT)),
    ("query", (("query", f"sort({RUNNING})"), AT, ("limit", "2"))),
    ("query", (("query", RUNNING), AT, ("timeout", "5s"))),
    ("query", (("query", ""), AT)),
    ("query", (("query", "sum("), AT)),
    ("query", (("query", "foo bar"), AT)),
    ("query", (("query", RUNNING), ("time", "yesterday"))),
    ("query", (("query", RUNNING), AT, ("timeout", "soon"))),
    ("query", (("query", RUNNING), AT, ("limit", "-1"))),
    ("query", (("query", f"{RUNNING} + on () group_left () {RUNNING}"), AT)),
    ("query_range", (("query", RUNNING), *RANGE)),
    ("query_range", (("query", "sum(rate(vllm:generation_tokens_total[2m]))"), *RANGE)),
    ("query_range", (("query", "time() / 7"), *RANGE)),
    ("query_range", (("query", "vector(1.5)"), *RANGE[:2], ("step", "1m30s"))),
    ("query_range", (("query", "nothing_there"), *RANGE)),
    ("query_range", (("query", f"{RUNNING}[5m]"), *RANGE)),
    ("query_range", (("query", '"text"'), *RANGE)),
    ("query_range", (("query", RUNNING), *RANGE[:2])),
    ("query_range", (("query", RUNNING), *RANGE[:2], ("step", "0"))),
    ("query_range", (("query", RUNNING), *RANGE[:2], ("step", "-1"))),
    ("query_range", (("query", RUNNING), ("start", "2"), ("end", "1"), ("step", "1"))),
    ("query_range", (("query", RUNNING), ("start", "0"), ("end", "11001"), ("step", "1"))),
    ("series", (MATCH, *SPAN)),
    ("series", (MATCH, ("match[]", '{engine="0",__name__=~"vllm:num.*"}'), *SPAN)),
    ("series", (("match[]", '{nothing="there"}'), *SPAN)),
    ("series", (MATCH, *SPAN, ("limit", "1"))),
    ("series", SPAN),
    ("series", (("match[]", "1 + 1"), *SPAN)),
    ("series", (("match[]", '{job=~".*"}'), *SPAN)),
    ("labels", SPAN),
    ("labels", FAR),
    ("labels", (MATCH, *SPAN)),
    ("labels", (*SPAN, ("limit", "2"))),
    ("labels", (("start", "2"), ("end", "1"))),
    ("series", (MATCH, ("start", "2"), ("end", "1"))),
    ("labels", (("start", "soon"),)),
    ("label/engine/values", SPAN),
    ("label/__name__/values", SPAN),
    ("label/engine/values", (MATCH, *SPAN)),
    ("label/nothing/values", SPAN),
    ("status/buildinfo", ()),
]


class Both(NamedTuple):
    """The same samples twice."""

    prometheus: int
    dsobs: int


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    found = streams()
    source = MemorySource()
    source.store, source.now = store_of(found), float(END)
    address: list[int] = []
    ended = threading.Event()

    async def listen() -> None:
        async with serve(source, "127.0.0.1:0", None) as (_, port):
            address.append(port)
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(listen(),))
    with Prometheus() as prometheus:
        prometheus.write(found)
        thread.start()
        try:
            deadline = time.monotonic() + DEADLINE
            while not address:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield Both(prometheus.port, address[0])
        finally:
            ended.set()
            thread.join(DEADLINE)


def ask(port: int, path: str, pairs: Pairs, method: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    form = urllib.parse.urlencode(pairs)
    if method == "GET":
        connection.request("GET", f"/api/v1/{path}?{form}")
    else:
        connection.request("POST", f"/api/v1/{path}", form, {"Content-Type": "application/x-www-form-urlencoded"})
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "application/json"
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told


def rounded(told: Any, key: str = "") -> Any:
    """What has to be the same: all but the wording of errors, last bits of values, hints, the order of a vector."""
    if isinstance(told, dict):
        left_out = ("infos", "error") if "status" in told else ()
        kept = {name: rounded(value, name) for name, value in told.items() if name not in left_out}
        if kept.get("resultType") == "vector":
            kept["result"] = sorted(kept["result"], key=lambda one: json.dumps(one["metric"], sort_keys=True))
        return kept
    if key in ("value", "values", "result") and isinstance(told, list) and len(told) == 2 and isinstance(told[1], str):
        return [told[0], _number(told[1])]
    if isinstance(told, list):
        return [rounded(one, key) for one in told]
    return told


def _number(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    return text if not math.isfinite(value) or len(text) < 12 else f"{value:.12g}"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_answers_have_the_status_and_shape_and_values_of_prometheus(both: Both, method: str) -> None:
    different = []
    asked = [(path, pairs) for path, pairs in REQUESTS if method == "GET" or not path.startswith(("label/", "status/"))]
    for path, pairs in asked:
        theirs, ours = (ask(port, path, pairs, method) for port in both)
        if path == "status/buildinfo":
            theirs, ours = ((status, {**told, "data": sorted(told["data"])}) for status, told in (theirs, ours))
        if (theirs[0], rounded(theirs[1])) != (ours[0], rounded(ours[1])):
            different.append(f"{path} {dict(pairs)}\n  Prometheus {str(theirs)[:600]}\n  dsobs      {str(ours)[:600]}")
    print(f"query API by {method}: {len(asked)} requests, {len(different)} answered differently")
    assert different == [], "\n".join(different)


@pytest.mark.parametrize(
    "arguments",
    [
        ["instant", f"--time={BEGIN + 905}", "SERVER", f"sum by (engine) ({RUNNING})"],
        ["range", f"--start={BEGIN + 200}", f"--end={BEGIN + 800}", "--step=60s", "SERVER", f"max({RUNNING})"],
        ["series", f"--match={RUNNING}", f"--start={BEGIN}", f"--end={END}", "SERVER"],
        ["labels", f"--start={BEGIN}", f"--end={END}", "SERVER", "engine"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_promtool_queries_it_as_it_queries_prometheus(both: Both, arguments: list[str]) -> None:
    outputs = []
    for port in both:
        filled = [argument.replace("SERVER", f"http://127.0.0.1:{port}") for argument in arguments]
        done = subprocess.run(
            [tool("promtool"), "query", *filled], check=False, capture_output=True, text=True, timeout=DEADLINE
        )
        assert done.returncode == 0, done.stderr
        outputs.append(sorted(done.stdout.splitlines()))
    assert outputs[0] == outputs[1]
    assert outputs[0]
