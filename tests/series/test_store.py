"""The store: bounded, thinned, forgetful of what nobody asked for."""

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
