"""GPU memory in use for work."""

import pytest

from dsobs.model.observation import Gpu, Unknown
from dsobs.signals.memory import effective_memory, kv_pool_of_log

GIB = 2**30
CARD = Gpu(0, uuid="GPU-1", memory_total_bytes=80 * GIB, memory_used_bytes=74 * GIB)
KEY = ("m", "0")


def effective(*args: object) -> dict[str, float]:
    samples = effective_memory(*args)  # type: ignore[arg-type]
    return {dict(s.labels).get("source", "used"): s.value for s in samples}


def test_an_idle_healthy_server_that_reserves_93_percent_is_far_below_the_limit() -> None:
    found = effective((CARD,), {KEY: 0.0}, 56 * GIB, True)
    assert found["used"] == pytest.approx(0.925)
    assert found["pool"] == pytest.approx(18 / 80)


def test_a_full_pool_counts_whole() -> None:
    assert effective((CARD,), {KEY: 1.0}, 56 * GIB, True)["pool"] == pytest.approx(0.925)


def test_where_the_pools_size_is_unknown_kv_usage_itself_is_the_signal() -> None:
    assert effective((CARD,), {KEY: 0.4, ("m", "1"): 0.7}, None, True)["kv_usage"] == 0.7


def test_an_engine_that_reserves_nothing_is_judged_by_memory_in_use() -> None:
    assert effective((CARD,), {}, None, False)["raw"] == pytest.approx(0.925)


@pytest.mark.parametrize(("usage", "reserves"), [({}, True), ({KEY: 0.1}, None)])
def test_what_can_not_be_known_is_absent(usage: dict[tuple[str, str], float], reserves: bool | None) -> None:
    assert set(effective((CARD,), usage, None, reserves)) == {"used"}


def test_no_reading_gives_no_sample() -> None:
    assert effective(Unknown("no driver"), {KEY: 0.1}, None, True) == {}
    assert effective((Gpu(0),), {KEY: 0.1}, None, True) == {}


def test_the_pools_size_is_read_from_the_last_start_in_the_log() -> None:
    lines = ["x Available KV cache memory: 1.00 GiB", "(EngineCore pid=776) INFO Available KV cache memory: 56.13 GiB"]
    assert kv_pool_of_log(lines) == int(56.13 * GIB)
    assert kv_pool_of_log(["nothing"]) is None


def test_our_kv_cache_says_nothing_about_anothers_card() -> None:
    assert set(effective_memory((CARD,), {KEY: 0.4}, 56 * GIB, True, {"GPU-1"})) == set(
        effective_memory((CARD,), {KEY: 0.4}, 56 * GIB, None)
    )
