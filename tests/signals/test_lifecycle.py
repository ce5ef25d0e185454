"""Starting, up, down, stopped on purpose, unresponsive."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dsobs.model.observation import Failure, Health, Observation, RuntimeView, Scrape, Unknown
from dsobs.signals.lifecycle import Lifecycle

NO = Unknown("no runtime configured")
RUNNING = RuntimeView("docker", "c", running=True, started_at=100.0)
ENDED = RuntimeView("docker", "c", running=False, started_at=100.0, exit_code=1)


def seen(at: float, runtime: RuntimeView | Unknown = NO, *, health: int | None = None) -> Observation:
    said = None if health is None else Health(at, 0.01, status=health)
    return Observation(at, Scrape(at, 0.01), health=said, runtime=runtime)


def refused(at: float, runtime: RuntimeView | Unknown = NO) -> Observation:
    scrape = Scrape(at, 0.0, failure=Failure.REFUSED, connected=False, answered=False)
    return Observation(at, scrape, runtime=runtime)


def closed(at: float, runtime: RuntimeView | Unknown = NO, *, health: int | None = None) -> Observation:
    """Accepted and closed with not one byte, as by Docker's port forwarder; `/health` too, unless it has a status."""
    said = Health(at, 0.01, status=health, failure=None if health is not None else Failure.CLOSED)
    scrape = Scrape(at, 0.0, failure=Failure.CLOSED, answered=False)
    return Observation(at, scrape, health=said, runtime=runtime)


def silent(at: float, runtime: RuntimeView | Unknown = NO) -> Observation:
    return Observation(at, Scrape(at, 5.0, failure=Failure.TIMEOUT, answered=False), runtime=runtime)


def unaccepted(at: float, runtime: RuntimeView | Unknown = NO) -> Observation:
    """The deadline passed before the connection was taken: the backlog of a server that stands still is full."""
    scrape = Scrape(at, 5.0, failure=Failure.TIMEOUT, connected=False, answered=False)
    return Observation(at, scrape, runtime=runtime)


def after(*observations: Observation, was_seen: bool = False) -> Lifecycle:
    life = Lifecycle(seen=was_seen)
    for obs in observations:
        life.observe(obs, new_instance=False)
    return life


def gauge(life: Lifecycle, name: str, now: float) -> float:
    return next(s.value for s in life.samples(now, 3600.0) if ("__name__", f"dsobs_engine_{name}") in s.labels)


def test_an_engine_never_yet_up_is_starting_and_nothing_else() -> None:
    life = after(*(refused(t, RUNNING) for t in range(110, 200)))
    assert life.down_since is None
    assert gauge(life, "starting_seconds", 200) == 100.0
    assert gauge(life, "seen", 200) == 0.0


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_new_instance_starts_when_it_is_seen_though_the_wall_clock_was_set(step: float) -> None:
    life = after(seen(200, RUNNING), seen(300, RUNNING))
    restarted = replace(RUNNING, started_at=300.0 + step)
    life.observe(refused(301, restarted), new_instance=True)
    life.observe(refused(302, restarted), new_instance=False)
    # It began between the last look and the one that saw it.
    assert gauge(life, "starting_seconds", 311) == (11.0 if step < 0 else 10.0)


def test_an_engine_that_ends_before_it_was_ever_up_is_not_down() -> None:
    life = after(refused(110, RUNNING), *(refused(t, ENDED) for t in range(111, 200)))
    assert life.down_since is None
    assert gauge(life, "starting_seconds", 200) > 80


def test_a_process_gone_with_nobody_seen_to_stop_it_is_down_at_once() -> None:
    life = after(seen(110, RUNNING), refused(111, ENDED))
    assert life.down_since == 111
    assert "exit code 1" in life.down_reason


def test_exit_code_0_alone_never_makes_a_stop_planned() -> None:
    for code in (0, 143):
        life = after(seen(110, RUNNING), refused(111, replace(ENDED, exit_code=code)))
        assert life.down_since == 111


def test_a_witnessed_stop_is_planned_and_not_down() -> None:
    stopped = replace(ENDED, exit_code=0, planned_stop="docker stop event")
    life = after(seen(110, RUNNING), *(refused(t, stopped) for t in range(111, 171)))
    assert life.down_since is None
    assert life.planned_stop == "docker stop event"
    assert gauge(life, "planned_stop_seconds", 171) == 60.0


def test_an_engine_that_is_back_up_is_neither_down_nor_stopped() -> None:
    life = after(seen(110, RUNNING), refused(111, ENDED), seen(120, replace(RUNNING, started_at=115.0)))
    assert life.down_since is None
    stopped = replace(ENDED, planned_stop="docker stop event")
    life = after(seen(110, RUNNING), refused(111, stopped), seen(120, RUNNING))
    assert life.planned_stop is None
    assert gauge(life, "planned_stop_seconds", 120) == 0.0


def test_refused_twice_without_a_runtime_is_not_down_and_three_times_is() -> None:
    life = after(seen(110), refused(111), refused(112))
    assert life.down_since is None
    life = after(seen(110), refused(111), refused(112), refused(113))
    assert life.down_since == 111


def test_an_engine_seen_before_dsobs_was_restarted_is_down_when_it_refuses() -> None:
    assert after(refused(1), refused(2), refused(3), was_seen=True).down_since == 1


def test_scrapes_that_time_out_for_a_minute_are_not_down_and_not_yet_unresponsive() -> None:
    life = after(seen(110, RUNNING), *(silent(t, RUNNING) for t in range(116, 175, 5)))
    assert life.down_since is None
    assert gauge(life, "unresponsive_seconds", 175) < 90


def test_unresponsive_counts_from_the_first_scrape_that_got_no_byte() -> None:
    life = after(seen(110, RUNNING), *(silent(t, RUNNING) for t in range(116, 300, 5)))
    assert gauge(life, "unresponsive_seconds", 301) == 190.0


def test_a_server_whose_backlog_is_full_is_unresponsive_like_one_that_still_accepts() -> None:
    life = after(seen(110, RUNNING), *(unaccepted(t, RUNNING) for t in range(116, 300, 5)))
    assert gauge(life, "unresponsive_seconds", 301) == 190.0
    # The backlog fills up meanwhile, with what clients sent.
    begun = [silent(116, RUNNING), silent(121, RUNNING)]
    life = after(seen(110, RUNNING), *begun, *(unaccepted(t, RUNNING) for t in range(126, 300, 5)))
    assert gauge(life, "unresponsive_seconds", 301) == 190.0


def test_a_name_that_is_not_resolved_is_nothing_that_a_server_does() -> None:
    lost = Scrape(116, 5.0, failure=Failure.UNREACHABLE, connected=False, answered=False)
    assert after(seen(110), Observation(116, lost)).unresponsive_since is None


def test_a_container_that_somebody_paused_is_a_planned_stop_and_not_unresponsive() -> None:
    paused = replace(RUNNING, planned_stop="docker pause", stopping="docker pause")
    life = after(seen(110, RUNNING), *(silent(t, paused) for t in range(116, 600, 5)))
    assert life.unresponsive_since is None
    assert life.planned_stop == "docker pause"
    assert life.down_since is None
    life.observe(seen(605, RUNNING), new_instance=False)
    assert life.planned_stop is None
    # Once it goes on and still says nothing, it counts from there.
    life = after(seen(110, RUNNING), *(silent(t, paused) for t in range(116, 600, 5)), silent(605, RUNNING))
    assert life.unresponsive_since == 600.0


def test_one_byte_ends_unresponsive() -> None:
    life = after(seen(110), silent(116), Observation(121, Scrape(121, 5.0, failure=Failure.TIMEOUT, answered=True)))
    assert life.unresponsive_since is None
    life = after(seen(110), silent(116), Observation(121, None, health=Health(121, 0.1, status=200)))
    assert life.unresponsive_since is None


def test_an_engine_restarted_by_its_own_runtime_after_a_crash_is_down_until_it_is_up() -> None:
    life = after(seen(110, RUNNING))
    again = replace(RUNNING, started_at=112.0)
    life.observe(refused(113, again), new_instance=True)
    assert life.down_since == 113
    life.observe(refused(114, again), new_instance=False)
    assert gauge(life, "starting_seconds", 120) == 8.0
    life.observe(seen(150, again), new_instance=False)
    assert life.down_since is None


def test_a_planned_restart_seen_only_as_a_new_instance_is_not_down() -> None:
    life = after(seen(110, RUNNING))
    again = replace(RUNNING, started_at=112.0, planned_stop="docker restart event")
    life.observe(refused(113, again), new_instance=True)
    assert life.down_since is None


def test_dsobs_own_restart_is_planned_but_does_not_end_a_page_that_is_open() -> None:
    life = after(seen(110, RUNNING))
    life.expect_own_stop("dsobs, incident 1", 160)
    life.observe(refused(111, ENDED), new_instance=False)
    assert life.down_since is None
    assert life.planned_stop == "dsobs, incident 1"
    life = after(seen(110, RUNNING), refused(111, ENDED))
    life.expect_own_stop("dsobs, incident 1", 160)
    life.observe(refused(112, ENDED), new_instance=False)
    assert life.down_since == 111


@pytest.mark.parametrize("status", [500, 503])
def test_health_that_answers_5xx_for_10_s_on_a_ready_engine_is_down(status: int) -> None:
    life = after(seen(100, RUNNING, health=200), *(seen(t, RUNNING, health=status) for t in range(101, 111)))
    assert life.down_since is None
    life.observe(seen(111, RUNNING, health=status), new_instance=False)
    assert life.down_since == 101
    life.observe(seen(112, RUNNING, health=200), new_instance=False)
    assert life.down_since is None


def test_a_scrape_still_in_flight_changes_nothing() -> None:
    life = after(seen(110), refused(111), refused(112))
    life.observe(Observation(113, None), new_instance=False)
    assert life.down_since is None
    life.observe(refused(114), new_instance=False)
    assert life.down_since == 111


def test_a_health_that_times_out_does_not_make_a_busy_engine_unready() -> None:
    life = after(seen(100, RUNNING, health=200))
    late = Health(101, 2.0, failure=Failure.TIMEOUT)
    life.observe(Observation(101, Scrape(101, 0.1), health=late, runtime=RUNNING), new_instance=False)
    assert life.ready


def test_an_engine_that_still_answers_while_dsobs_stops_it_is_not_down_afterwards() -> None:
    life = after(seen(110, RUNNING))
    life.expect_own_stop("dsobs, incident 1", 160)
    life.observe(seen(111, RUNNING), new_instance=False)
    again = replace(RUNNING, started_at=113.0)
    life.observe(refused(113, again), new_instance=True)
    assert life.down_since is None
    life.observe(seen(120, again), new_instance=False)
    life.observe(refused(121, replace(ENDED, started_at=113.0)), new_instance=False)
    assert life.down_since == 121


def test_an_own_restart_that_never_began_an_instance_excuses_nothing_later() -> None:
    life = after(seen(110, RUNNING))
    life.expect_own_stop("dsobs, incident 1", 160)
    life.observe(seen(161, RUNNING), new_instance=False)
    life.observe(refused(162, ENDED), new_instance=False)
    assert life.down_since == 162


def test_a_runtime_that_can_not_be_asked_while_the_engine_ends_as_it_was_asked_makes_no_outage() -> None:
    asked = replace(RUNNING, planned_stop="SIGTERM", stopping="SIGTERM")
    away = Unknown("the supervisor hung up")
    life = after(seen(110, RUNNING), refused(111, asked), refused(112, asked), refused(113, away), refused(114, away))
    assert life.down_since is None
    assert life.planned_stop == "SIGTERM"


def test_an_engine_that_works_on_after_it_was_asked_to_end_is_down_when_it_goes_unseen() -> None:
    asked = replace(RUNNING, planned_stop="SIGTERM", stopping="SIGTERM")
    away = Unknown("the supervisor hung up")
    life = after(seen(110, asked), seen(111, away), *(refused(t, away) for t in range(112, 116)))
    assert life.down_since == 112


def test_a_planned_stop_whose_witness_comes_late_is_no_outage_any_more() -> None:
    life = after(seen(110, RUNNING), *(refused(t, Unknown("Docker does not answer")) for t in range(111, 130)))
    assert life.down_since == 111
    stopped = replace(ENDED, exit_code=0, planned_stop="docker stop event")
    life.observe(refused(130, stopped), new_instance=False)
    assert life.down_since is None
    assert life.planned_stop == "docker stop event"
    assert gauge(life, "planned_stop_seconds", 131) == 20.0


def test_own_restart_excuses_the_end_of_the_old_instance_and_not_of_the_new_one() -> None:
    life = after(seen(110, RUNNING))
    life.expect_own_stop("dsobs, incident 1", 160)
    life.observe(refused(111, ENDED), new_instance=False)
    again = replace(RUNNING, started_at=112.0)
    life.observe(refused(113, again), new_instance=True)
    life.observe(refused(114, again), new_instance=False)
    assert life.down_since is None
    life.observe(refused(115, replace(again, running=False, exit_code=1)), new_instance=False)
    assert life.down_since == 115
    assert life.planned_stop is None


def test_a_crash_loop_after_an_own_restart_is_down_though_no_end_of_it_was_seen() -> None:
    life = after(seen(110, RUNNING))
    life.expect_own_stop("dsobs, incident 1", 160)
    life.observe(refused(113, replace(RUNNING, started_at=112.0)), new_instance=True)
    assert life.down_since is None
    life.observe(refused(117, replace(RUNNING, started_at=116.0)), new_instance=True)
    assert life.down_since == 117


def test_an_own_restart_that_brings_no_new_instance_is_down_when_its_time_is_over() -> None:
    life = after(seen(110, RUNNING))
    life.expect_own_stop("dsobs, incident 1", 160)
    for at in range(111, 161):
        life.observe(refused(at, ENDED), new_instance=False)
    assert life.down_since is None
    life.observe(refused(161, ENDED), new_instance=False)
    assert life.down_since == 161


@pytest.mark.parametrize("looks", [("ended", "again", "ended"), ("again", "ended"), ("again", "another")])
def test_a_planned_restart_excuses_no_crash_of_the_instance_that_it_made(looks: tuple[str, ...]) -> None:
    life = after(seen(110, RUNNING))
    planned: str | None = "docker restart event"
    at = 111.0
    for number, look in enumerate(looks):
        runtime = replace(RUNNING, running=look != "ended", started_at=100.0 + number, planned_stop=planned)
        life.observe(refused(at, runtime), new_instance=look != "ended")
        if look == "again":
            assert life.down_since is None
            planned = None
        at += 1
    assert life.down_since == at - 1
    assert life.planned_stop is None


def test_a_runtime_that_does_not_answer_while_a_planned_restart_loads_its_model_is_no_outage() -> None:
    life = after(seen(110, RUNNING))
    again = replace(RUNNING, started_at=112.0, planned_stop="docker restart event")
    life.observe(refused(113, again), new_instance=True)
    for at in range(114, 130):
        life.observe(refused(at, Unknown("Docker does not answer")), new_instance=False)
    assert life.down_since is None


def test_a_port_that_closes_while_the_process_lives_is_down_and_not_starting() -> None:
    life = after(seen(110, RUNNING), refused(111, RUNNING), refused(112, RUNNING))
    assert life.down_since is None
    life.observe(refused(113, RUNNING), new_instance=False)
    assert life.down_since == 111
    assert life.starting_since is None
    assert "though its process lives" in life.down_reason


def test_a_port_that_closes_after_somebody_asked_the_process_to_stop_is_a_planned_stop() -> None:
    # What stopped the last instance says nothing about this one.
    stale = replace(RUNNING, planned_stop="docker restart event")
    assert after(seen(110, stale), *(refused(t, stale) for t in range(111, 115))).down_since == 111
    asked = replace(RUNNING, planned_stop="docker kill event", stopping="docker kill event")
    life = after(seen(110, RUNNING), *(refused(t, asked) for t in range(111, 115)))
    assert life.down_since is None
    assert life.planned_stop == "docker kill event"


def test_an_instance_that_was_loading_when_dsobs_was_restarted_is_starting() -> None:
    life = Lifecycle(seen=True, was_up=False)
    for at in range(110, 130):
        life.observe(refused(at, RUNNING), new_instance=False)
    assert life.down_since is None
    assert life.starting_since is not None


def test_an_engine_never_up_whose_connections_are_closed_is_starting() -> None:
    life = after(*(closed(t, RUNNING) for t in range(110, 200)))
    assert life.starting_since is not None
    assert life.down_since is None
    assert life.unresponsive_since is None


@pytest.mark.parametrize("witness", ["docker restart event", None])
@pytest.mark.parametrize("look", [closed, refused, silent])
def test_a_new_instance_that_loads_is_starting_however_its_port_fails(
    look: Callable[[float, RuntimeView], Observation], witness: str | None
) -> None:
    life = after(seen(110, RUNNING))
    again = replace(RUNNING, started_at=112.0, planned_stop=witness)
    life.observe(look(113, again), new_instance=True)
    for at in range(114, 400):
        life.observe(look(at, again), new_instance=False)
    assert gauge(life, "starting_seconds", 400) == 288.0
    assert life.unresponsive_since is None
    assert life.down_since == (None if witness else 113)


def test_a_new_instance_is_starting_though_its_first_scrape_is_in_flight_when_it_is_seen() -> None:
    life = after(seen(110, RUNNING))
    again = replace(RUNNING, started_at=112.0, planned_stop="docker restart event")
    life.observe(Observation(113, None, runtime=again), new_instance=True)
    for at in range(114, 130):
        life.observe(refused(at, again), new_instance=False)
    assert life.starting_since is not None
    assert life.down_since is None


def test_closed_connections_without_a_runtime_are_down_after_three_where_health_fares_the_same() -> None:
    assert after(seen(110), closed(111), closed(112)).down_since is None
    life = after(seen(110), closed(111), closed(112), closed(113))
    assert life.down_since == 111
    assert life.unresponsive_since is None
    assert after(seen(110), *(closed(t, health=200) for t in range(111, 200))).down_since is None


def test_a_living_instance_that_closes_connections_is_down_only_after_ten_seconds_of_it() -> None:
    life = after(seen(110, RUNNING), *(closed(t, RUNNING) for t in range(111, 121)))
    assert life.down_since is None
    life.observe(closed(121, RUNNING), new_instance=False)
    assert life.down_since == 111
    assert life.starting_since is None


def test_a_living_instance_at_its_limit_of_connections_is_neither_down_nor_unresponsive() -> None:
    life = after(seen(110, RUNNING))
    for at in range(111, 300):
        # One in eight gets through.
        life.observe(seen(at, RUNNING) if at % 8 == 0 else closed(at, RUNNING), new_instance=False)
        assert life.down_since is None
    for at in range(300, 400):
        life.observe(closed(at, RUNNING, health=503), new_instance=False)
    assert life.down_since is None
    assert life.unresponsive_since is None


def test_a_port_that_refuses_now_and_closes_then_counts_as_away_throughout() -> None:
    away = [refused(111), closed(112), refused(113)]
    assert after(seen(110), *away).down_since == 111


UNSEEN = RuntimeView("kubernetes", "engine", brings_back=True)


def test_container_that_can_t_be_seen_is_down_after_refused_scrapes_and_planned_by_a_witness_alone() -> None:
    life = after(seen(100, UNSEEN), *(refused(t, UNSEEN) for t in range(101, 104)))
    assert (life.down_since, life.planned_stop) == (101, None)
    ending = replace(UNSEEN, planned_stop="preStop", stopping="preStop")
    life = after(seen(100, UNSEEN), *(refused(t, ending) for t in range(101, 104)))
    assert (life.down_since, life.planned_stop) == (None, "preStop")


def test_own_restart_of_a_container_that_can_t_be_seen_is_planned_until_it_is_up_again() -> None:
    life = after(seen(100, UNSEEN, health=200))
    life.expect_own_stop("dsobs, incident i1", 140.0)
    life.observe(refused(110, UNSEEN), new_instance=False)
    life.expect_own_stop_longer(3700.0)
    for at in range(111, 600):
        life.observe(refused(at, UNSEEN), new_instance=False)
    assert (life.down_since, life.planned_stop) == (None, "dsobs, incident i1")
    life.observe(seen(600, UNSEEN, health=200), new_instance=True)
    for at in range(601, 605):
        life.observe(refused(at, UNSEEN), new_instance=False)
    assert (life.down_since, life.planned_stop) == (601, None)


def test_longer_waiting_for_a_new_instance_that_is_up_already_plans_no_further_end() -> None:
    life = after(seen(100, UNSEEN, health=200))
    life.expect_own_stop("dsobs, incident i1", 140.0)
    life.observe(seen(110, UNSEEN, health=200), new_instance=True)
    life.expect_own_stop_longer(3700.0)
    for at in range(111, 115):
        life.observe(refused(at, UNSEEN), new_instance=False)
    assert life.planned_stop is None


def test_instance_was_ready_from_its_first_health_until_the_next_instance() -> None:
    life = after(seen(100))
    assert not life.was_ready
    life.observe(seen(101, health=200), new_instance=False)
    life.observe(silent(102), new_instance=False)
    assert (life.ready, life.was_ready) == (False, True)
    life.observe(seen(103, health=503), new_instance=True)
    assert not life.was_ready
