"""What queries over a range cost, and for how long they hold the event loop.

python -m tests.benchmarks.query

One hour at 15 s of a P99 over all engines of a server with 8 engines: their histogram has 8 × 23 buckets, 1 Hz for ten
minutes and 15 s beyond, as the store keeps them. The loop's gaps are
the CPU time that another task waits for its next turn.
"""

import asyncio
import json
import statistics
import time

from dsobs import promql
from dsobs.model.samples import Labels, labels_of
from dsobs.series.store import Store

ENGINES = 8
BOUNDS = (
    *("0.001", "0.005", "0.01", "0.02", "0.04", "0.06", "0.08", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0"),
    *("7.5", "10.0", "20.0", "40.0", "80.0", "160.0", "640.0", "2560.0", "+Inf"),
)
NAME = "vllm:time_to_first_token_seconds_bucket"
P99 = f"histogram_quantile(0.99, sum by (le) (rate({NAME}[5m])))"
BEGIN, HOURS = 1_700_000_000, 2
ROUNDS = 9


def store() -> Store:
    """Two hours of busy engines, each with its own rate; one restarts on the way."""
    made = Store()
    made.want(NAME)
    series: list[tuple[Labels, int, int]] = [
        (labels_of({"__name__": NAME, "engine": str(engine), "le": bound, "model_name": "m"}), engine, index)
        for engine in range(ENGINES)
        for index, bound in enumerate(BOUNDS)
    ]
    for second in range(HOURS * 3_600):
        for labels, engine, index in series:
            since = second - 4_000 if engine == 3 and second >= 4_000 else second
            made.append(labels, BEGIN + second, float(since * (index + 1) * (engine + 7) // 90))
    return made


async def measured(data: Store) -> tuple[float, float]:
    """CPU of one query and the longest that another task waits, ms of CPU."""
    gaps = [0.0]

    async def watch() -> None:
        while True:
            begun = time.process_time()
            await asyncio.sleep(0)
            gaps.append(time.process_time() - begun)

    end = BEGIN + HOURS * 3_600
    watching = asyncio.create_task(watch())
    begun = time.process_time()
    (p99,) = await promql.range_query(P99, data, end - 3_600, end, 15)
    spent = time.process_time() - begun
    watching.cancel()
    assert len(p99.values) == 241
    return spent * 1_000, max(gaps) * 1_000


async def main() -> None:
    """Prints one JSON object."""
    data = store()
    found = [await measured(data) for _ in range(ROUNDS)]
    query = promql.compile(P99)
    instants = []
    for second in range(50):
        begun = time.process_time()
        query.evaluate(data, BEGIN + HOURS * 3_600 - second)
        instants.append((time.process_time() - begun) * 1_000)
    told = {
        "range_1h_15s_p99_ms": statistics.median(spent for spent, _ in found),
        "longest_gap_ms": statistics.median(gap for _, gap in found),
        "instant_p99_ms": statistics.median(instants),
    }
    print(json.dumps({name: round(value, 2) for name, value in told.items()}))


if __name__ == "__main__":
    asyncio.run(main())
