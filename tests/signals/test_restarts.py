"""Restarts of the last 24 hours."""

from dataclasses import replace

import pytest

from dsobs.model.observation import RuntimeView, Unknown
from dsobs.signals.restarts import Known, Restart, RestartWindow

NO = Unknown("no runtime")


def view(started: float, count: int | None = None, history: tuple[float, ...] = ()) -> RuntimeView:
    return RuntimeView("docker", "c", running=True, started_at=started, restart_count=count, started_history=history)


def test_the_first_instance_is_no_restart() -> None:
    window = RestartWindow()
    assert window.observe(100, view(50), 52) == []
    assert window.in_24h(100) == 0


def test_a_restart_seen_by_runtime_and_page_counts_once() -> None:
    window = RestartWindow()
    window.observe(100, view(50), 52)
    window.observe(200, view(190), 52)
    window.observe(260, view(190), 250)
    assert window.in_24h(260) == 1


@pytest.mark.parametrize("step", [-3600, 3600])
def test_a_restart_after_the_wall_clock_was_set_counts_once_and_is_dsobs_own_where_it_is(step: float) -> None:
    window = RestartWindow()
    window.observe(10_000, view(9_000), None)
    window.expect_own(10_060)
    window.observe(10_029, view(9_000), None)
    # It began between the last look and this one: nearer can't be told by a clock that was set.
    fresh = window.observe(10_030, view(10_029 + step), None)
    assert fresh == [Restart(10_029 if step < 0 else 10_030, by_dsobs=True)]
    assert window.observe(10_089, view(10_029 + step), None) == []
    # And the next one, a minute later by either clock.
    fresh = window.observe(10_090, view(10_089 + step), None)
    assert fresh == [Restart(10_089 if step < 0 else 10_090)]
    assert window.in_24h(10_090) == 2


def test_a_restart_seen_by_the_page_first_counts_once() -> None:
    window = RestartWindow()
    window.observe(100, view(50), 52)
    window.observe(200, NO, 195)
    window.observe(210, view(190), 195)
    assert window.in_24h(210) == 1


def test_a_process_restarted_inside_its_container_counts() -> None:
    window = RestartWindow()
    window.observe(100, view(50), 52)
    window.observe(200, view(50), 195)
    assert window.in_24h(200) == 1
    window.observe(300, view(290), 295)
    assert window.in_24h(300) == 2


def test_several_restarts_between_two_looks_are_counted_by_the_runtimes_counter() -> None:
    window = RestartWindow()
    window.observe(100, view(50, 2), None)
    window.observe(200, view(190, 5), None)
    assert window.in_24h(200) == 3


def test_a_manual_restart_that_docker_does_not_count_is_counted() -> None:
    window = RestartWindow()
    window.observe(100, view(50, 0), None)
    window.observe(200, view(190, 0), None)
    assert window.in_24h(200) == 1


def test_a_runtime_that_can_not_be_asked_for_a_while_makes_no_restart() -> None:
    window = RestartWindow()
    window.observe(100, view(50), 90)
    window.observe(110, NO, 90)
    window.observe(120, view(50), 90)
    assert window.in_24h(120) == 0


def test_the_window_is_24_hours_and_holds_whole_numbers_over_a_restart_of_dsobs() -> None:
    window = RestartWindow()
    starts = [0.0, 1000.0, 2000.0, 3000.0, 4000.0]
    for start in starts:
        window.observe(start + 10, view(start), None)
    assert window.in_24h(4010) == 4
    again = RestartWindow(window.restarts, window.known)
    again.observe(4020, view(4000.0), None)
    assert again.in_24h(4020) == 4
    assert again.in_24h(86400 + 2000) == 2
    again.observe(5000, view(4990), None)
    assert again.in_24h(5000) == 5


def test_a_restart_while_dsobs_was_away_is_counted_when_it_is_back() -> None:
    window = RestartWindow(known=Known(50.0, 52.0, None))
    assert len(window.observe(500, view(400), 405)) == 1


def test_dsobs_own_restart_counts_too_and_is_marked() -> None:
    window = RestartWindow()
    window.observe(100, view(50), None)
    window.expect_own(until=160)
    (restart,) = window.observe(155, view(150), None)
    assert restart.by_dsobs
    (restart,) = window.observe(255, view(250), None)
    assert not restart.by_dsobs
    assert window.in_24h(255) == 2


def test_restarts_while_dsobs_was_away_are_counted_at_their_own_times() -> None:
    window = RestartWindow()
    window.observe(100, view(50, 0, (50,)), 52)
    again = RestartWindow(window.restarts, window.known)
    # By hand, so that Docker's counter knows nothing of them.
    back = view(4000, 0, (50, 1000, 2000, 3000, 4000))
    assert [r.at for r in again.observe(5000, back, 4003)] == [1000, 2000, 3000, 4000]
    assert again.observe(5001, back, 4003) == []
    assert again.in_24h(5001) == 4
    assert again.in_24h(86400 + 2500) == 2


def test_what_the_runtime_does_not_remember_any_more_is_counted_by_its_counter() -> None:
    window = RestartWindow(known=Known(50.0, None, 2))
    assert [r.at for r in window.observe(5000, view(4000, 7, (3000, 4000)), None)] == [3000, 4000, 4000, 4000, 4000]


def test_a_counter_that_began_anew_counts_the_start_by_hand_and_what_followed() -> None:
    window = RestartWindow(known=Known(50.0, None, 5))
    assert len(window.observe(5000, view(4000, 2), None)) == 3


def test_with_its_memory_lost_dsobs_counts_what_the_runtime_remembers() -> None:
    window = RestartWindow()
    assert window.observe(5000, view(4000, 1, (1000, 3000, 4000)), 4002) == []
    assert window.in_24h(5000) == 2
    # It restarted more often than it remembers starts: the first of these was a restart too.
    older = RestartWindow()
    older.observe(5000, view(4000, 9, (1000, 3000, 4000)), 4002)
    assert older.in_24h(5000) == 3


def test_a_restart_after_the_wall_clock_was_set_back_counts_once_and_now() -> None:
    hour = 3600.0
    for page_first in (False, True):
        window = RestartWindow()
        window.observe(10_000, view(9_000), 9_002)
        if page_first:
            window.observe(10_010, NO, 10_005 - hour)
        window.observe(10_011, view(10_003 - hour), 9_002 if not page_first else 10_005 - hour)
        window.observe(10_040, view(10_003 - hour), 10_005 - hour)
        assert [10_000 <= r.at <= 10_011 for r in window.restarts] == [True]


def test_a_restart_after_the_wall_clock_was_set_forward_counts_once_and_now() -> None:
    window = RestartWindow()
    window.observe(10_000, view(9_000), 9_002)
    window.observe(10_011, view(13_603), 9_002)
    window.observe(10_040, view(13_603), 13_605)
    assert [r.at for r in window.restarts] == [10_011]


def test_an_older_start_on_the_page_is_a_restart_where_nobody_listened_in_between() -> None:
    # The wall clock was set back, and no runtime can be asked.
    window = RestartWindow()
    window.observe(10_000, NO, 9_000)
    assert window.observe(10_010, NO, 6_410) == []
    window = RestartWindow()
    window.observe(10_000, NO, 9_000)
    assert window.observe(10_010, NO, 6_410, was_away=True) == [Restart(10_010)]
    assert window.observe(10_020, NO, 6_410) == []


def test_starts_before_a_step_of_the_wall_clock_are_not_counted_again_after_it() -> None:
    window = RestartWindow()
    first, back, forward = 10_000.0, 10_060.0 - 3600, 10_120.0 + 3600
    window.observe(10_010, replace(view(first), started_history=(first,)), None)
    window.observe(10_061, replace(view(back), started_history=(first, back)), None)
    window.observe(10_121, replace(view(forward), started_history=(first, back, forward)), None)
    assert window.in_24h(10_121) == 2


def test_own_restart_whose_instance_begins_late_is_dsobs_own_while_it_is_waited_for() -> None:
    window = RestartWindow()
    window.observe(100, NO, 50)
    window.expect_own(140)
    window.expect_own_longer(3700)
    assert window.observe(700, NO, 690) == [Restart(690, by_dsobs=True)]
    window.expect_own_longer(9000)
    assert window.observe(900, NO, 890) == [Restart(890, by_dsobs=False)]


def test_restarts_of_the_pod_before_count_too_for_as_long_as_they_are_younger_than_a_day() -> None:
    window = RestartWindow()
    view = RuntimeView("kubernetes", "engine", running=True, started_at=100_000.0, restarts_before=(20_000.0, 99_000.0))
    assert window.observe(100_100.0, view, None) == []
    assert window.in_24h(100_100.0) == 2
    assert window.in_24h(20_000.0 + 86400.0) == 1
    assert window.own_in_24h(100_100.0) == 0
