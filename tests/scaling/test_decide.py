"""When replicas are added and taken away."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs.config.scaling import Scaling, parse_peak
from dsobs.model.observation import Unknown
from dsobs.model.scaling import Replicas
from dsobs.scaling.decide import Decision, Scaler, peak_replicas

SETTINGS = Scaling(max_replicas=5, sustained_for=60, cooldown=300, scale_in=True, scale_in_after=600)


def there(wanted: int, ready: int | None = None, pods: int | None = None) -> Replicas:
    ready = wanted if ready is None else ready
    return Replicas("Deployment vllm", wanted, ready, pods=wanted if pods is None else pods)


def after(seconds: int, replicas: Replicas, demands: list[float | None], settings: Scaling = SETTINGS) -> Decision:
    """What is decided once it has been so for as long."""
    scaler = Scaler()
    for now in range(0, seconds, 5):
        decision = scaler.decide(float(now), replicas, demands, settings)
        if decision.to is not None:
            return decision
    return decision


def test_demand_of_more_than_there_is_adds_one_replica_once_it_has_lasted() -> None:
    assert after(60, there(2), [1.5, 1.0]).to is None
    decision = after(70, there(2), [1.5, 1.0])
    assert (decision.desired, decision.to) == (3, 3)
    assert decision.reason == "2 replicas want 2.50"


def test_one_hot_replica_beside_idle_ones_is_no_reason() -> None:
    assert after(3600, there(3), [2.0, 0.2, 0.2]).to is None


def test_it_is_one_step_at_a_time_though_much_more_is_wanted() -> None:
    decision = after(70, there(1), [10.0])
    assert (decision.desired, decision.to) == (5, 2)


@pytest.mark.parametrize("demands", [[1.5, None], [1.5], [], [1.5, float("nan")]])
def test_missing_data_holds(demands: list[float | None]) -> None:
    assert after(7200, there(2), demands).to is None
    assert after(7200, there(2), demands).desired is None


def test_unknown_replicas_hold_and_say_why() -> None:
    decision = Scaler().decide(0.0, Unknown("no right"), [9.0], SETTINGS)
    assert decision == Decision(None, None, "no right")


def test_replicas_that_still_load_count_and_nothing_is_added_meanwhile() -> None:
    decision = after(3600, there(3, ready=2), [3.0, 3.0])
    assert (decision.desired, decision.to) == (5, None)
    assert "2 of 3 replicas are ready" in decision.reason


def test_the_maximum_is_never_passed_and_is_named() -> None:
    decision = after(3600, there(5), [3.0] * 5)
    assert (decision.desired, decision.to) == (5, None)
    assert decision.reason.endswith("scaling.max_replicas is 5")


def test_cooldown_is_never_less_than_what_an_engine_took_to_start() -> None:
    scaler = Scaler()
    added = []
    for now in range(0, 2000, 5):
        decision = scaler.decide(float(now), there(1), [2.0], SETTINGS, last_action=0.0, start_seconds=900.0)
        if decision.to is not None:
            added.append(now)
    assert added[0] == 900


def test_change_that_somebody_else_made_begins_the_cooldown() -> None:
    scaler = Scaler()
    for now in range(0, 100, 5):
        scaler.decide(float(now), there(1), [0.5], SETTINGS)
    first = next(
        now for now in range(100, 1000, 5) if scaler.decide(float(now), there(2), [2.0, 2.0], SETTINGS).to is not None
    )
    assert first == 400


def test_replica_is_taken_away_slowly_and_only_where_that_is_wanted() -> None:
    assert after(600, there(3), [0.2, 0.2, 0.2]).to is None
    assert after(610, there(3), [0.2, 0.2, 0.2]).to == 2
    kept = Scaling(max_replicas=5)
    assert after(7200, there(3), [0.2, 0.2, 0.2], kept).to is None
    assert "scale_in is false" in after(7200, there(3), [0.2, 0.2, 0.2], kept).reason


def test_replica_whose_going_would_fill_the_others_stays() -> None:
    # 1.5 on two is 0.75 each, above 0.7.
    assert after(7200, there(3), [0.5, 0.5, 0.5]).to is None
    assert after(7200, there(3), [0.45, 0.45, 0.45]).to == 2


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


PEAK = "4 for 2h from 0 8 * * mon-fri"


@pytest.mark.parametrize(
    ("moment", "replicas"),
    [
        ("2026-11-30T07:59:59", 0),
        ("2026-11-30T08:00:00", 4),
        ("2026-11-30T09:59:59", 4),
        ("2026-11-30T10:00:00", 0),
        ("2026-11-29T08:30:00", 0),
    ],
)
def test_known_peak_holds_from_its_beginning_to_its_end(moment: str, replicas: int) -> None:
    assert peak_replicas([PEAK], "UTC", at(moment)) == replicas


def test_known_peak_is_in_its_own_time_zone() -> None:
    assert peak_replicas([PEAK], "Europe/Berlin", at("2026-11-30T07:00:00")) == 4
    assert peak_replicas([PEAK], "Europe/Berlin", at("2026-11-30T06:59:00")) == 0


@pytest.mark.parametrize(
    "text", ["", "4 from 0 8 * * *", "0 for 2h from 0 8 * * *", "4 for ever from 0 8 * * *", "4 for 2h from 61 8 * * *"]
)
def test_what_is_no_peak_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse_peak(text)


def test_known_peak_adds_replicas_at_once_and_without_data() -> None:
    settings = SETTINGS.model_copy(update={"peaks": (PEAK,)})
    decision = Scaler().decide(at("2026-11-30T08:00:00"), there(2), [None, None], settings)
    assert (decision.desired, decision.to) == (4, 3)
    assert decision.reason == "a known peak asks for 4"


def test_nothing_is_taken_away_in_a_known_peak() -> None:
    settings = SETTINGS.model_copy(update={"peaks": (PEAK,)})
    scaler = Scaler()
    begun = at("2026-11-30T08:00:00")
    assert all(scaler.decide(begun + s, there(4), [0.1] * 4, settings).to is None for s in range(0, 7200, 10))


@given(
    st.lists(st.tuples(st.integers(1, 120), st.lists(st.none() | st.floats(0, 10), max_size=6)), max_size=60),
    st.integers(1, 6),
    st.booleans(),
)
def test_whatever_happens_it_is_one_step_within_the_limits_and_not_twice_in_a_cooldown(
    looks: list[tuple[int, list[float | None]]], begin: int, instant: bool
) -> None:
    settings = SETTINGS.model_copy(update={"sustained_for": 0.0 if instant else 60.0, "scale_in_after": 60.0})
    scaler, wanted, now = Scaler(), begin, 0.0
    acted: list[float] = []
    for pause, demands in looks:
        now += pause
        decision = scaler.decide(now, there(wanted), demands, settings, last_action=acted[-1] if acted else None)
        if decision.desired is not None:
            assert settings.min_replicas <= decision.desired <= settings.max_replicas
        if decision.to is not None:
            assert abs(decision.to - wanted) == 1
            assert decision.to <= settings.max_replicas or decision.to < wanted
            assert len(demands) >= wanted
            assert None not in demands
            assert not acted or now - acted[-1] >= settings.cooldown
            acted.append(now)
            wanted = decision.to
