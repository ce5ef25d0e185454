"""Prometheus' query API of the sidecar: shapes, refusals and limits. Against a real Prometheus: tests/real."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from dsobs import promql
from dsobs.api import queries
from dsobs.api.points import time_text, value_text
from dsobs.model.samples import labels
from dsobs.model.signals import SIGNALS
from tests.api.conftest import Client, MemorySource

NOW = 2_000_000_000.0


@pytest.fixture
def filled(source: MemorySource) -> MemorySource:
    source.store.show(3600)
    source.now = NOW
    for second in range(0, 601, 15):
        for gpu in ("0", "1"):
            sample = labels("dsobs_gpu_power_watts", gpu=gpu)
            source.store.append(sample, NOW - 600 + second, 100.0 * (int(gpu) + 1) + second)
        source.store.append(labels("dsobs_engine_up"), NOW - 600 + second, 1.0)
    return source


async def told(client: Client, path: str, *pairs: tuple[str, str], status: int = 200, post: bool = False) -> Any:
    asked = client.post(path, data=list(pairs)) if post else client.get(path, params=list(pairs))
    async with asked as response:
        answer = await response.json()
        assert response.status == status, answer
        return answer if status == 200 else answer["errorType"] + ": " + answer["error"]


@pytest.mark.parametrize("post", [False, True], ids=["get", "post"])
async def test_an_instant_query_gives_a_vector_at_the_present_time(
    client: Client, filled: MemorySource, post: bool
) -> None:
    answer = await told(client, "/api/v1/query", ("query", "dsobs_gpu_power_watts"), post=post)
    assert answer == {
        "status": "success",
        "data": {
            "resultType": "vector",
            "result": [
                {"metric": {"__name__": "dsobs_gpu_power_watts", "gpu": "0"}, "value": [2000000000, "700"]},
                {"metric": {"__name__": "dsobs_gpu_power_watts", "gpu": "1"}, "value": [2000000000, "800"]},
            ],
        },
    }


@pytest.mark.parametrize(
    ("query", "data"),
    [
        ("1.5e-7", {"resultType": "scalar", "result": [2000000000, "1.5e-7"]}),
        ('"text"', {"resultType": "string", "result": [2000000000, "text"]}),
        ("nothing_there", {"resultType": "vector", "result": []}),
        (
            "dsobs_engine_up[30s]",
            {
                "resultType": "matrix",
                "result": [
                    {
                        "metric": {"__name__": "dsobs_engine_up"},
                        "values": [[1999999985, "1"], [2000000000, "1"]],
                    }
                ],
            },
        ),
    ],
)
async def test_every_type_of_result_has_prometheus_form(
    client: Client, filled: MemorySource, query: str, data: Any
) -> None:
    assert (await told(client, "/api/v1/query", ("query", query)))["data"] == data


@pytest.mark.parametrize("at", ["1999999970.5", "2033-05-18T03:32:50.500Z", "2033-05-18T05:32:50.5+02:00"])
async def test_times_are_unix_seconds_or_rfc_3339(client: Client, filled: MemorySource, at: str) -> None:
    answer = await told(client, "/api/v1/query", ("query", "sum(dsobs_gpu_power_watts)"), ("time", at))
    assert answer["data"]["result"] == [{"metric": {}, "value": [1999999970.5, "1440"]}]


@pytest.mark.parametrize("step", ["60", "60s", "1m"])
async def test_a_range_query_gives_points_at_each_step(client: Client, filled: MemorySource, step: str) -> None:
    answer = await told(
        client,
        "/api/v1/query_range",
        ("query", 'dsobs_gpu_power_watts{gpu="0"} / 3'),
        ("start", str(NOW - 120)),
        ("end", str(NOW)),
        ("step", step),
    )
    assert answer["data"] == {
        "resultType": "matrix",
        "result": [
            {
                "metric": {"gpu": "0"},
                "values": [[1999999880, "193.33333333333334"], [1999999940, "213.33333333333334"], [NOW, str(700 / 3)]],
            }
        ],
    }


async def test_series_labels_and_values_are_those_that_match(client: Client, filled: MemorySource) -> None:
    match = ("match[]", "dsobs_gpu_power_watts")
    series = await told(client, "/api/v1/series", match, ("match[]", '{gpu="1"}'))
    assert [one["gpu"] for one in series["data"]] == ["0", "1"]
    assert (await told(client, "/api/v1/labels"))["data"] == ["__name__", "gpu"]
    assert (await told(client, "/api/v1/labels", ("match[]", "dsobs_engine_up")))["data"] == ["__name__"]
    assert (await told(client, "/api/v1/label/gpu/values", match))["data"] == ["0", "1"]
    names = await told(client, "/api/v1/label/__name__/values")
    assert names["data"] == ["dsobs_engine_up", "dsobs_gpu_power_watts"]
    before = await told(client, "/api/v1/labels", ("start", "1"), ("end", "1000"))
    assert before["data"] == []


async def test_a_limit_cuts_and_says_so(client: Client, filled: MemorySource) -> None:
    for path, pair in (
        ("/api/v1/query", ("query", "dsobs_gpu_power_watts")),
        ("/api/v1/series", ("match[]", "dsobs_gpu_power_watts")),
        ("/api/v1/labels", ("match[]", "dsobs_gpu_power_watts")),
    ):
        answer = await told(client, path, pair, ("limit", "1"))
        assert answer["warnings"] == ["results truncated due to limit"]
        data = answer["data"]
        assert len(data["result"] if isinstance(data, dict) else data) == 1
        assert "warnings" not in await told(client, path, pair, ("limit", "2"))


async def test_metadata_has_type_meaning_and_unit_of_every_signal(client: Client) -> None:
    answer = await told(client, "/api/v1/metadata")
    assert set(SIGNALS) <= set(answer["data"])
    assert answer["data"]["dsobs_loop_ticks_total"] == [{"type": "counter", "help": "Turns of a loop.", "unit": ""}]
    one = await told(client, "/api/v1/metadata", ("metric", "dsobs_gpu_power_watts"))
    assert one["data"] == {
        "dsobs_gpu_power_watts": [{"type": "gauge", "help": "Power drawn.", "unit": "watts"}],
    }
    assert (await told(client, "/api/v1/metadata", ("metric", "nothing")))["data"] == {}
    assert len((await told(client, "/api/v1/metadata", ("limit", "3")))["data"]) == 3


async def test_build_information_says_whose_language_it_is(client: Client) -> None:
    answer = await told(client, "/api/v1/status/buildinfo")
    assert set(answer["data"]) == {"version", "revision", "branch", "buildUser", "buildDate", "goVersion"}
    assert answer["data"]["version"].startswith("3.0.0+dsobs.")


RANGE = (("start", "1"), ("end", "2"), ("step", "1"))


@pytest.mark.parametrize(
    ("path", "pairs", "expected"),
    [
        ("query", [("query", "")], 'bad_data: invalid parameter "query": parse error: no expression found in input'),
        ("query", [("query", "sum(")], 'bad_data: invalid parameter "query": parse error: unclosed left parenthesis'),
        ("query", [("query", "1\n+ foo(")], 'bad_data: invalid parameter "query": '),
        (
            "query",
            [("query", "up"), ("time", "today")],
            'bad_data: invalid parameter "time": cannot parse "today" to a',
        ),
        ("query", [("query", "up"), ("time", "NaN")], 'bad_data: invalid parameter "time": '),
        ("query", [("query", "up"), ("time", "2033-05-18")], 'bad_data: invalid parameter "time": '),
        ("query", [("query", "up"), ("timeout", "long")], 'bad_data: invalid parameter "timeout": cannot parse "long"'),
        ("query", [("query", "up"), ("limit", "-1")], 'bad_data: invalid parameter "limit": "-1"'),
        ("query", [("query", "up"), ("lookback_delta", "1m")], 'bad_data: invalid parameter "lookback_delta": '),
        ("query_range", [("query", "up")], 'bad_data: invalid parameter "start": cannot parse "" to a valid timestamp'),
        ("query_range", [("query", "up"), *RANGE[:2]], 'bad_data: invalid parameter "step": cannot parse ""'),
        (
            "query_range",
            [("query", "up"), ("start", "2"), ("end", "1"), ("step", "1")],
            'bad_data: invalid parameter "end": end timestamp must not be before start time',
        ),
        (
            "query_range",
            [("query", "up"), *RANGE[:2], ("step", "0")],
            'bad_data: invalid parameter "step": zero or neg',
        ),
        ("query_range", [("query", "up[5m]"), *RANGE], 'bad_data: invalid parameter "query": '),
        ("query_range", [("query", '"text"'), *RANGE], 'bad_data: invalid parameter "query": '),
        (
            "query_range",
            [("query", "up"), ("start", "0"), ("end", "11001"), ("step", "1")],
            "bad_data: exceeded maximum resolution of 11,000 points per timeseries. Try decreasing",
        ),
        ("series", [], "bad_data: no match[] parameter provided"),
        ("series", [("match[]", "1 + 1")], 'bad_data: invalid parameter "match[]": '),
        ("series", [("match[]", '{job=~".*"}')], 'bad_data: invalid parameter "match[]": '),
    ],
)
async def test_what_is_wrong_with_a_request_is_named(
    client: Client, path: str, pairs: list[tuple[str, str]], expected: str
) -> None:
    assert (await told(client, f"/api/v1/{path}", *pairs, status=400)).startswith(expected)


async def test_a_body_that_is_no_form_is_refused(client: Client) -> None:
    async with client.post("/api/v1/query", json={"query": "up"}) as response:
        assert response.status == 400
        assert "application/x-www-form-urlencoded" in (await response.json())["error"]


async def test_data_that_allow_no_result_are_an_execution_error(client: Client, filled: MemorySource) -> None:
    ambiguous = "dsobs_engine_up + on () group_right () dsobs_gpu_power_watts + on () dsobs_gpu_power_watts"
    answer = await told(client, "/api/v1/query", ("query", ambiguous), status=422)
    assert answer.startswith("execution: ")


async def test_a_query_over_its_limits_is_refused_and_says_what_to_do(client: Client, filled: MemorySource) -> None:
    long = [("query", "dsobs_gpu_power_watts"), ("start", str(NOW - 600)), ("end", str(NOW)), ("step", "1")]
    filled.limits = replace(filled.limits, points=1000)
    answer = await told(client, "/api/v1/query_range", *long, status=422)
    assert answer.startswith("execution: the result has more than 1000 values; select fewer series")
    answer = await told(client, "/api/v1/query", ("query", "dsobs_engine_up[10m:100ms]"), status=422)
    assert answer.startswith("execution: the result has more than 1000 values; select fewer series")
    filled.limits = replace(filled.limits, samples=100, points=500_000)
    answer = await told(client, "/api/v1/query_range", *long, status=422)
    assert answer.startswith("execution: the query reads more than 100 samples; select fewer series")


def make_busy(source: MemorySource, series: int = 60) -> list[tuple[str, str]]:
    """Samples, and a query of them that takes a while."""
    for number in range(series):
        for second in range(0, 601, 15):
            source.store.append(labels("busy", n=str(number), of=str(series)), NOW - 600 + second, float(second))
    return [("query", f'rate(busy{{of="{series}"}}[2m])'), ("start", str(NOW - 450)), ("end", str(NOW)), ("step", "1")]


async def test_a_long_query_holds_neither_the_loop_nor_a_short_request(client: Client, filled: MemorySource) -> None:
    turns = 0

    async def watch() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    watching = asyncio.create_task(watch())
    # It takes 100 ms and more, in slices of 5 ms; on a fast machine a longer one does.
    for series in (60, 240, 960):
        long_pairs = make_busy(filled, series)
        long = asyncio.create_task(told(client, "/api/v1/query_range", *long_pairs))
        await asyncio.sleep(0.02)
        async with client.get("/livez") as response:
            assert response.status == 200
        before, still_asked = turns, not long.done()
        assert len((await long)["data"]["result"]) == series
        in_between = turns - before
        if still_asked and in_between >= 10:
            break
    watching.cancel()
    assert still_asked
    assert in_between >= 10


async def test_a_query_waits_for_its_place_and_gives_up_in_time(
    client: Client, filled: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, place = 0, queries._Queries._place

    @contextlib.asynccontextmanager
    async def counted(self: queries._Queries, limits: promql.Limits) -> AsyncIterator[None]:
        nonlocal taken
        async with place(self, limits):
            taken += 1
            yield

    monkeypatch.setattr(queries._Queries, "_place", counted)
    pairs = make_busy(filled)
    assert (await told(client, "/api/v1/query_range", *pairs, ("timeout", "1ms"), status=503)).startswith("timeout: ")
    long = [asyncio.create_task(told(client, "/api/v1/query_range", *pairs)) for _ in range(2)]
    while taken < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    refused = await told(client, "/api/v1/query", ("query", "1"), ("timeout", "1ms"), status=503)
    assert refused == "timeout: 2 other queries took 0.001 s; ask for less at a time"
    await asyncio.gather(*long)
    assert (await told(client, "/api/v1/query", ("query", "1")))["status"] == "success"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1e-6, "0.000001"),
        (9.5e-7, "9.5e-7"),
        (1e-10, "1e-10"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (-1.25e300, "-1.25e+300"),
        (math.nan, "NaN"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (0.1, "0.1"),
    ],
)
def test_values_are_written_as_prometheus_writes_them(value: float, expected: str) -> None:
    assert value_text(value) == expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [(0, "0"), (1500, "1.500"), (1_999_999_999_001, "1999999999.001"), (-1, "-0.001"), (-1500, "-1.500")],
)
def test_times_are_written_to_the_millisecond(at: int, expected: str) -> None:
    assert time_text(at) == expected
