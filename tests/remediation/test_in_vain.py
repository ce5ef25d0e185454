"""A restart that was asked for by a request and had no effect, an engine that never came back, one that is held."""

from dataclasses import replace

import pytest

from dsobs.model.observation import RuntimeView
from dsobs.model.view import Witness
from dsobs.remediation.ledger import Entry, Ledger
from tests.remediation.test_plan import (
    DOWN,
    ENFORCE,
    EVIDENCE,
    NOW,
    VIEW,
    alert,
    do,
    ledger,
    pages,
    restarts,
)

UNSEEN = RuntimeView("kubernetes", "engine", running=None, brings_back=True)
WHY = "kubelet did not restart the engine's container within 20 s of the request"


def in_vain(*ago: float, paged: bool = True) -> Ledger:
    """Attempts without effect that ended so many seconds ago."""
    book, id_ = ledger(EVIDENCE), 10
    for seconds in ago:
        lines = [
            Entry(NOW - seconds - 20, "i1", "restart", "reserved", {}, id_),
            Entry(
                NOW - seconds, "i1", "restart", "failed", {"attempt": id_, "why": WHY, "without_effect": True}, id_ + 1
            ),
        ]
        if paged:
            lines.append(Entry(NOW - seconds, "i1", "page", "done", {}, id_ + 2))
        for line in lines:
            book = book.with_entry(line)
        id_ += 3
    return book


def test_request_without_effect_is_paged_at_once() -> None:
    assert pages(do([alert()], book=in_vain(1, paged=False))) == [f"restart failed: {WHY}"]


def test_request_without_effect_counts_against_the_budget() -> None:
    book = in_vain(700)
    assert book.attempts(NOW - 86400) == 1
    assert restarts(do([alert()], replace(VIEW, restarts_24h=1), book, ENFORCE)) == [None]
    assert restarts(do([alert()], replace(VIEW, restarts_24h=2), book, ENFORCE)) == [
        "budget: budget used: 3 restarts in 24 h, limit 3"
    ]


def test_request_without_effect_is_repeated_once_at_most_and_only_after_the_cooldown() -> None:
    assert restarts(do([alert()], book=in_vain(61))) == ["cooldown: cooldown: 519 s left"]
    assert restarts(do([alert()], book=in_vain(601))) == [None]
    book = in_vain(1500, 601)
    assert restarts(do([alert()], book=book)) == ["refused_before: the runtime refused 2 times; this is for a person"]
    assert pages(do([alert()], book=in_vain(1500, 601, paged=False))) == [
        f"restart failed 2 times, dsobs tries no more: {WHY}"
    ]


def test_engine_that_was_never_ready_again_is_not_restarted_again() -> None:
    book = ledger(EVIDENCE, (4000, "restart", "reserved"))
    book = book.with_entry(Entry(NOW - 3900, "i1", "restart", "done", {"attempt": 3}, 4))
    book = book.with_entry(Entry(NOW - 300, "i1", "verify", "failed", {}, 5))
    book = book.with_entry(Entry(NOW - 300, "i1", "page", "done", {}, 6))
    latched = replace(VIEW, was_ready=False, ready=False)
    assert restarts(do([alert()], latched, book)) == [
        "ready_again: the engine has not been ready since the restart of incident i1"
    ]
    assert restarts(do([alert()], VIEW, book)) == [None]
    # One that nobody restarted may hang before it was ever ready.
    assert restarts(do([alert()], latched)) == [None]


def test_latch_of_an_older_day_is_over() -> None:
    book = ledger(EVIDENCE, (90000, "restart", "reserved"))
    book = book.with_entry(Entry(NOW - 86500, "i0", "restart", "done", {"attempt": 3}, 4))
    assert restarts(do([alert()], replace(VIEW, was_ready=False), book)) == [None]


def test_held_engine_is_left_to_who_is_at_work_on_it() -> None:
    held = replace(VIEW, runtime=replace(UNSEEN, hold="the pod is being deleted"))
    steps = do([alert()], held, settings=ENFORCE)
    assert restarts(steps) == ["not_held: the pod is being deleted"]
    assert pages(steps) == []


def test_engine_that_can_t_be_seen_is_restarted_for_a_hang() -> None:
    assert restarts(do([alert()], replace(VIEW, runtime=UNSEEN))) == [None]


@pytest.mark.parametrize("running", [False, None])
def test_what_has_ended_or_may_have_is_left_to_a_runtime_that_brings_it_back(running: bool | None) -> None:
    runtime = replace(UNSEEN, running=running)
    assert restarts(do([alert("EngineDown")], replace(DOWN, runtime=runtime))) == []


def test_process_that_lives_behind_a_closed_port_and_stands_still_is_restarted_there_too() -> None:
    runtime = replace(UNSEEN, running=True)
    view = replace(DOWN, runtime=runtime, down_since=NOW - 400, witness=Witness.STILL, still_since=NOW - 400)
    assert restarts(do([alert("EngineDown")], view)) == [None]
    assert restarts(do([alert("EngineDown")], replace(view, witness=Witness.UNKNOWN))) == []


def test_api_server_that_outlived_its_core_is_restarted_though_its_container_can_t_be_seen() -> None:
    view = replace(DOWN, up=True, runtime=UNSEEN, probe_error_at=NOW - 1)
    assert restarts(do([alert("EngineDown")], view)) == [None]


def test_page_of_a_refusal_says_why_the_engine_can_only_be_looked_at() -> None:
    runtime = replace(UNSEEN, look_only="the pod's restartPolicy is Never")
    view = replace(VIEW, runtime=runtime, can_restart=False)
    assert pages(do([alert()], view, settings=ENFORCE)) == [
        "restart refused: runtime_known: the runtime can't restart the engine: the pod's restartPolicy is Never"
    ]
