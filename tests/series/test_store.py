"""The store: bounded, thinned, forgetful of what nobody asked for."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dsobs import promql
from dsobs.model.samples import Sample, labels
from dsobs.series.store import Store, is_stale

X = labels("x")


def wanting(**settings: float) -> Store:
    store = Store(**settings)  # type: ignore[arg-type]
    store.want("x")
    return store


def count(store: Store, window: str, at: float) -> float:
    found = promql.compile(f"count_over_time(x[{window}])").evaluate(store, at)
    assert isinstance(found, list)
    return found[0].value if found else 0.0


def test_what_nobody_asked_for_is_not_kept() -> None:
    store = wanting()
    store.append(labels("y"), 1.0, 1.0)
    assert list(store.series(None)) == []
    store.want("y")
    store.append(labels("y"), 2.0, 1.0)
    assert len(list(store.series("y"))) == 1


def test_every_second_for_ten_minutes_and_one_in_15_s_beyond() -> None:
    store = wanting()
    for t in range(7200):
        store.append(X, float(t), float(t))
    assert count(store, "10m", 7199.0) == 600.0
    assert 450 <= count(store, "2h", 7199.0) <= 600 + 150 + 450


def test_a_virtual_day_holds_six_hours_and_no_more() -> None:
    store = wanting()
    for t in range(86_400):
        store.append(X, float(t), 1.0)
    (series,) = store.series("x")
    assert len(series.times) + len(series.old_times) < 2300
    assert series.old_times[0] / 1000 > 86_400 - 6.5 * 3600


def test_thinning_keeps_the_increase_of_a_counter() -> None:
    store = wanting()
    for t in range(7200):
        store.append(X, float(t), float(3 * t))
    found = promql.compile("increase(x[1h])").evaluate(store, 7199.0)
    assert isinstance(found, list)
    assert abs(found[0].value - 3 * 3600) < 3 * 15


def test_late_and_double_samples_are_left_out() -> None:
    store = wanting()
    for t, value in ((10.0, 1.0), (10.0, 2.0), (9.0, 3.0), (11.0, 4.0)):
        store.append(X, t, value)
    (series,) = store.series("x")
    assert list(series.values) == [1.0, 4.0]


def test_what_a_source_has_no_more_is_stale_at_once() -> None:
    store = wanting()
    store.append_samples([Sample(X, 1.0)], 1.0, "engine")
    store.append_samples([], 2.0, "engine")
    (series,) = store.series("x")
    assert is_stale(series.values[-1])
    store.append_samples([Sample(X, 5.0)], 3.0, "engine")
    assert promql.compile("x").evaluate(store, 3.0) == [Sample(X, 5.0)]


def test_sources_do_not_end_each_others_series() -> None:
    store = wanting()
    store.append_samples([Sample(X, 1.0)], 1.0, "a")
    store.append_samples([], 2.0, "b")
    assert promql.compile("x").evaluate(store, 2.0) == [Sample(X, 1.0)]


def test_the_number_of_series_is_bounded() -> None:
    store = wanting(max_series=10)
    for n in range(100):
        store.append(labels("x", n=str(n)), 1.0, 1.0)
    assert len(list(store.series("x"))) == 10


def test_series_unseen_for_six_hours_are_forgotten() -> None:
    store = wanting()
    store.want("y")
    store.append(X, 0.0, 1.0)
    for t in range(0, 8 * 3600, 60):
        store.append_samples([Sample(labels("y"), 1.0)], float(t), "s")
    assert list(store.series("x")) == []


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(allow_nan=False)), max_size=200))
def test_times_are_ascending_whatever_comes(samples: list[tuple[float, float]]) -> None:
    store = wanting(fine_seconds=100.0, coarse_seconds=10_000.0)
    for t, value in samples:
        store.append(X, t, value)
    for series in store.series("x"):
        times = [*series.old_times, *series.times]
        assert times == sorted(set(times))


def increase(store: Store, window: str, at: float) -> float:
    found = promql.compile(f"increase(x[{window}])").evaluate(store, at)
    assert isinstance(found, list)
    return found[0].value


def test_thinning_loses_nothing_of_a_counter_that_was_reset() -> None:
    store = wanting()
    for t in range(7200):
        # Reset every 1000 s, at second 8 of some step of 15 s and across the edge of another.
        store.append(X, float(t), float(5 * (t % 1000)))
    # 5 a second, less the second of each of the two resets in it.
    assert abs(increase(store, "30m", 7199.0) - 5 * (1800 - 2)) < 1.0


def test_thinning_leaves_out_the_staleness_marker_between_a_fall_but_not_at_the_end() -> None:
    store = wanting()
    for t in range(1200):
        if t == 100:
            store.mark_stale(X, float(t))
        else:
            store.append(X, float(t), float(t if t < 100 else t - 100))
    (series,) = store.series("x")
    assert not any(map(is_stale, series.old_values))
    assert list(series.old_values[:9]) == [14.0, 29.0, 44.0, 59.0, 74.0, 89.0, 99.0, 1.0, 4.0]


def test_a_metric_is_kept_as_far_back_as_it_is_read() -> None:
    store = Store()
    store.want("x", 300.0)
    for t in range(7200):
        store.append(X, float(t), float(t))
    (series,) = store.series("x")
    assert not series.old_times
    assert 600 <= len(series.times) <= 765
    store.want("x", 3600.0)
    store.want("x", 60.0)
    for t in range(7200, 18_000):
        store.append(X, float(t), float(t))
    assert series.old_times[0] / 1000 <= 18_000 - 3600 + 15
    assert len(series.old_times) <= 3600 / 15 + 1


def test_a_gauge_that_is_never_a_number_is_thinned_too() -> None:
    store = wanting()
    for t in range(7200):
        store.append(X, float(t), float("nan"))
    (series,) = store.series("x")
    assert len(series.old_times) < 7200 / 15


def test_a_series_that_ends_at_the_time_of_its_last_sample_is_stale() -> None:
    store = wanting()
    store.append_samples([Sample(X, 1.0)], 5.0, "engine")
    store.mark_stale("engine", 5.0)
    assert promql.compile("x").evaluate(store, 5.1) == []
    store.mark_stale(X, 6.0)
    (series,) = store.series("x")
    assert len(series.times) == 2


def test_a_series_that_was_forgotten_and_comes_back_is_found_again() -> None:
    store = wanting()
    store.want("y")
    store.append_samples([Sample(X, 1.0)], 0.0, "engine")
    for t in range(0, 8 * 3600, 60):
        store.append_samples([Sample(labels("y"), 1.0)], float(t), "other")
    store.append_samples([Sample(X, 2.0)], 8 * 3600.0, "engine")
    assert promql.compile("x").evaluate(store, 8 * 3600.0) == [Sample(X, 2.0)]


@given(st.lists(st.integers(0, 40), min_size=300, max_size=300), st.integers(40, 250))
def test_thinning_leaves_the_last_of_each_step_and_the_increase(steps: list[int], reset: int) -> None:
    store = wanting(fine_seconds=20.0, coarse_seconds=10_000.0)
    total, value, values = 0.0, 0.0, []
    for t, step in enumerate(steps):
        total += step if t else 0
        value = float(step) if t == reset else value + step
        values.append(value)
        store.append(X, float(t), value)
    (series,) = store.series("x")
    kept = dict(zip([*series.old_times, *series.times], [*series.old_values, *series.values], strict=True))
    for second in range(14, 270, 15):
        assert kept[second * 1000] == values[second]
    points = [values[0], *kept.values()]
    increase = sum(b - a if b >= a else b for a, b in pairwise(points))
    fallen = values[reset] < values[reset - 1]
    assert increase == (total if fallen else values[-1] - values[0])


def test_what_is_only_shown_is_kept_at_one_sample_in_15_s_for_as_long_as_it_is_shown() -> None:
    store = wanting()
    store.show(3600)
    for t in range(7200):
        store.append_samples([Sample(X, float(t)), Sample(labels("y"), float(t))], 1e6 + t, "engine")
    (shown,) = store.series("y")
    times, _ = shown.samples(0, 2**62)
    assert {b - a for a, b in pairwise(times)} == {15_000}
    # Thinned in pieces of a quarter of the ten minutes.
    assert 3600 <= (times[-1] - times[0]) / 1000 <= 3600 + 150
    (wanted,) = store.series("x")
    assert len(wanted.times) > 590


def test_a_shown_series_ends_at_once_and_begins_again_at_once() -> None:
    store = wanting()
    store.show(3600)
    y = labels("y")
    for t, value in ((0, 1.0), (1, 2.0), (2, None), (3, 4.0), (4, 5.0)):
        store.append_samples([] if value is None else [Sample(y, value)], 1e6 + t, "engine")
    (series,) = store.series("y")
    assert [t / 1000 - 1e6 for t in series.times] == [0, 2, 3]
    assert [None if is_stale(v) else v for v in series.values] == [1.0, None, 4.0]


def test_what_is_only_shown_takes_no_place_from_what_is_wanted() -> None:
    store = wanting(max_series=12, max_shown=10)
    store.show(3600)
    for n in range(20):
        store.append(labels("y", n=str(n)), 1e6, 1.0)
    for n in range(20):
        store.append(labels("x", n=str(n)), 1e6, 1.0)
    assert (len(list(store.series("y"))), len(list(store.series("x")))) == (10, 2)


def test_a_shown_metric_that_a_rule_begins_to_read_is_kept_whole_from_then_on() -> None:
    store = wanting()
    store.show(3600)
    y = labels("y")
    store.append(y, 1e6, 1.0)
    store.want("y")
    for t in range(1, 10):
        store.append(y, 1e6 + t, 1.0)
    assert [len(series.times) for series in store.series("y")] == [10]


def test_nothing_is_shown_any_more_once_that_is_switched_off() -> None:
    store = wanting()
    store.show(3600)
    store.show(0)
    store.append(labels("y"), 1e6, 1.0)
    assert list(store.series(None)) == []
