from hypothesis import given
from hypothesis import strategies as st

from dsobs.simulator.scheduler import Request, Scheduler, Yield


def a_scheduler(
    *, seqs: int = 8, batched: int = 64, blocks: int = 101, block_size: int = 4, decode: float = 0.01
) -> Scheduler:
    return Scheduler(seqs, batched, blocks, block_size, decode, prefill_tokens_per_second=1000.0)


def step(scheduler: Scheduler, now: float) -> tuple[float, list[Yield]]:
    seconds = scheduler.plan(now)
    return seconds, scheduler.complete()


def test_prompt_in_one_step_yields_its_first_token_there() -> None:
    scheduler = a_scheduler()
    scheduler.add(Request("a", 10, 2), 5.0)
    seconds, out = step(scheduler, 6.0)
    assert seconds == 0.01 + 10 / 1000
    assert [(y.id, y.finish_reason, y.queued_at, y.scheduled_at) for y in out] == [("a", None, 5.0, 6.0)]
    seconds, out = step(scheduler, 7.0)
    assert seconds == 0.01
    assert [y.finish_reason for y in out] == ["length"]
    assert not scheduler.has_work
    assert scheduler.kv_usage == 0


def test_chunks_of_a_long_prompt_yield_nothing_and_fill_the_cache() -> None:
    scheduler = a_scheduler(batched=64)
    scheduler.add(Request("long", 200, 1), 0.0)
    usages = []
    for _ in range(3):
        _, out = step(scheduler, 0.0)
        assert out == []
        usages.append(scheduler.kv_usage)
    assert usages == sorted(set(usages))
    _, out = step(scheduler, 0.0)
    assert [y.finish_reason for y in out] == ["length"]


def test_prefix_queries_count_the_whole_prompt_once_when_it_is_scheduled() -> None:
    scheduler = a_scheduler(batched=64)
    scheduler.add(Request("long", 200, 1), 0.0)
    step(scheduler, 0.0)
    assert scheduler.counts()["queries"] == 200
    step(scheduler, 0.0)
    assert scheduler.counts()["queries"] == 0


def test_full_cache_preempts_the_youngest_which_finishes_later() -> None:
    scheduler = a_scheduler(blocks=11, block_size=4)
    scheduler.add(Request("old", 16, 12), 0.0)
    scheduler.add(Request("young", 16, 12), 0.0)
    last: dict[str, Yield] = {}
    steps = 0
    while scheduler.has_work:
        for y in step(scheduler, float(steps))[1]:
            last[y.id] = y
        steps += 1
        assert scheduler.kv_usage <= 1
    assert [last[id_].finish_reason for id_ in ("old", "young")] == ["length", "length"]
    assert last["old"].preemptions == 0
    assert last["young"].preemptions >= 1


def test_requests_over_max_num_seqs_wait() -> None:
    scheduler = a_scheduler(seqs=2)
    for id_ in "abc":
        scheduler.add(Request(id_, 4, 5), 0.0)
    step(scheduler, 0.0)
    counts = scheduler.counts()
    assert (counts["running"], counts["waiting"]) == (2, 1)


def test_aborted_request_gives_its_blocks_back() -> None:
    scheduler = a_scheduler()
    scheduler.add(Request("a", 40, 50), 0.0)
    step(scheduler, 0.0)
    assert scheduler.kv_usage > 0
    scheduler.abort(["a", "unknown"])
    assert scheduler.kv_usage == 0
    assert not scheduler.has_work


def test_paused_scheduler_has_no_work() -> None:
    scheduler = a_scheduler()
    scheduler.paused = True
    scheduler.add(Request("a", 4, 1), 0.0)
    assert not scheduler.has_work
    scheduler.paused = False
    assert scheduler.has_work


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), max_size=8),
    st.integers(1, 6),
    st.integers(1, 50),
    st.integers(21, 60),
)
def test_every_request_gets_all_its_tokens_and_the_cache_is_empty_at_the_end(
    requests: list[tuple[int, int]], seqs: int, batched: int, blocks: int
) -> None:
    scheduler = a_scheduler(seqs=seqs, batched=batched, blocks=blocks, block_size=4)
    for index, (prompt, limit) in enumerate(requests):
        scheduler.add(Request(str(index), prompt, limit), 0.0)
    tokens = dict.fromkeys(map(str, range(len(requests))), 0)
    for _ in range(5000):
        if not scheduler.has_work:
            break
        for y in step(scheduler, 0.0)[1]:
            tokens[y.id] += 1
        assert 0 <= scheduler.kv_usage <= 1
    assert list(tokens.values()) == [limit for _, limit in requests]
    assert scheduler.used_blocks == 0
