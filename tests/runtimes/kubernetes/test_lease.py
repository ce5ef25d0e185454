"""What follows from a Lease and from the workload's pods."""

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from dsobs.model.observation import Unknown
from dsobs.model.turn import Fleet
from dsobs.runtimes.kubernetes import lease as leases
from dsobs.runtimes.kubernetes.lease import Action, Limits, Watched
from tests.kubernetes_stand_in import pod_json

NOW = 1_800_000_000.0
LIMITS = Limits(share=0.3, actions=5, window=3600.0)


def stamp(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def pod(name: str, *, ready: bool = True, since: float = NOW - 5000, born: float = NOW - 9000, **labels: str) -> Any:
    made = copy.deepcopy(pod_json())
    made["metadata"] |= {"name": name, "uid": f"uid-{name}", "creationTimestamp": stamp(born)}
    made["metadata"]["labels"] |= labels
    status = "True" if ready else "False"
    made["status"]["conditions"] = [{"type": "Ready", "status": status, "lastTransitionTime": stamp(since)}]
    return made


def action(name: str, ago: float, *restarts: float) -> Action:
    return Action(NOW - ago, name, f"uid-{name}", "restart", "i1", tuple(NOW - each for each in restarts))


def judge(*pods: Any, wanted: int | None = None, actions: tuple[Action, ...] = (), limits: Limits = LIMITS) -> Fleet:
    return leases.breaker(leases.replicas(pods, pods[0]), leases.replica_key(pods[0]), wanted, actions, NOW, limits)


def lease(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "dsobs-deployment-vllm", "resourceVersion": "7"}, "spec": spec}


def test_name_of_the_lease_is_the_workloads_and_fits() -> None:
    assert leases.lease_name("Deployment", "vllm") == "dsobs-deployment-vllm"
    long, other = leases.lease_name("Deployment", "v" * 252 + "a"), leases.lease_name("Deployment", "v" * 252 + "b")
    assert (len(long), long != other) == (253, True)


def test_lease_that_nobody_has_made_is_free() -> None:
    held = leases.read_lease(None)
    assert (held.holder, held.actions) == ("", ())
    assert Watched().held_by_another(held, "me", 0.0) is None


def test_holder_that_renews_keeps_the_lease_whatever_its_clock_says() -> None:
    watched = Watched()
    for turn in range(20):
        renewed = lease(holderIdentity="b", leaseDurationSeconds=15, renewTime=f"1999-01-01T00:00:{turn:02}Z")
        assert watched.held_by_another(leases.read_lease(renewed), "me", turn * 14.0) == "b"


def test_holder_that_renews_no_more_has_lost_it_after_the_duration_seen_here() -> None:
    watched = Watched()
    ahead = leases.read_lease(lease(holderIdentity="b", leaseDurationSeconds=15, renewTime="2199-01-01T00:00:00Z"))
    assert watched.held_by_another(ahead, "me", 100.0) == "b"
    assert watched.held_by_another(ahead, "me", 114.9) == "b"
    assert watched.held_by_another(ahead, "me", 115.0) is None


def test_own_and_released_leases_are_free_at_once() -> None:
    for holder in ("me", ""):
        held = leases.read_lease(lease(holderIdentity=holder, leaseDurationSeconds=15))
        assert Watched().held_by_another(held, "me", 0.0) is None


@pytest.mark.parametrize("duration", [None, 0, -3, "x"])
def test_duration_that_makes_no_sense_is_the_usual(duration: Any) -> None:
    assert leases.read_lease(lease(holderIdentity="b", leaseDurationSeconds=duration)).duration == 15.0


def test_actions_are_kept_over_writing_and_reading_and_the_rest_of_the_lease_stays() -> None:
    before = lease(holderIdentity="", leaseTransitions=4)
    before["metadata"]["annotations"] = {"somebody": "else"}
    done = (action("a", 60, 500, 100),)
    after = leases.written(leases.read_lease(before), "n", "me", done, NOW)
    assert leases.read_lease(after).actions == done
    assert after["metadata"]["annotations"]["somebody"] == "else"
    assert after["metadata"]["resourceVersion"] == "7"
    spec = after["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"], spec["leaseDurationSeconds"]) == ("me", 5, 15)
    assert spec["renewTime"] == spec["acquireTime"]
    renewed = leases.written(leases.read_lease(after), "n", "me", done, NOW + 3)["spec"]
    assert (renewed["leaseTransitions"], renewed["acquireTime"]) == (5, spec["acquireTime"])
    assert renewed["renewTime"] > spec["renewTime"]


@pytest.mark.parametrize(
    "text", ["{", "{}x", "7", '["a"]', '[{"at": 1}]', '[{"at": "NaN", "pod": "a", "uid": "u", "what": "restart"}]']
)
def test_actions_that_cannot_be_read_are_unknown_and_not_none(text: str) -> None:
    told = lease(holderIdentity="")
    told["metadata"]["annotations"] = {leases.ACTIONS: text}
    actions = leases.read_lease(told).actions
    assert isinstance(actions, Unknown)
    assert "annotation dsobs.io/actions of Lease dsobs-deployment-vllm can't be read" in actions.reason
    assert "remove the annotation" in actions.reason


def test_actions_of_a_day_are_kept_and_their_number_is_bounded() -> None:
    young = leases.kept([action("a", 86401), action("b", 86399), action("c", -500)], NOW)
    assert [each.pod for each in young] == ["b", "c"]
    assert young[-1].at == NOW
    many = [Action(NOW - 1000 + n, f"p{n}", "u" * 36, "group_restart", "i" * 22, (NOW,) * 20) for n in range(500)]
    kept = leases.kept(many, NOW)
    assert [kept[0].pod, kept[-1].pod] == ["p400", "p499"]
    text = leases.written(leases.Held(), "n", "me", kept, NOW)["metadata"]["annotations"][leases.ACTIONS]
    assert len(text) < 64 * 1024
    assert len(json.loads(text)) == 100


# The breaker.


def test_one_replica_that_is_alone_may_be_acted_on() -> None:
    assert judge(pod("a")) == Fleet()


def test_three_replicas_are_acted_on_one_after_the_other() -> None:
    assert judge(pod("a"), pod("b"), pod("c")) == Fleet()
    unready = judge(pod("a"), pod("b", ready=False), pod("c")).unready
    assert unready is not None
    assert unready.startswith("2 of 3 replicas would be unready, 1 may be (remediation.fleet_breaker is 0.3)")
    assert unready.endswith("not ready: b")


@pytest.mark.parametrize(("others", "away", "allowed"), [(9, 2, True), (9, 3, False), (6, 1, True), (6, 2, False)])
def test_share_of_a_larger_workload_may_be_away(others: int, away: int, *, allowed: bool) -> None:
    pods = [pod("a"), *(pod(f"p{n}", ready=n >= away) for n in range(others))]
    assert (judge(*pods) == Fleet()) is allowed


def test_replica_that_is_not_there_is_not_ready() -> None:
    assert judge(pod("a"), pod("b"), wanted=3).unready is not None
    gone, going = pod("c"), pod("d")
    gone["status"]["phase"] = "Failed"
    going["metadata"]["deletionTimestamp"] = stamp(NOW)
    assert judge(pod("a"), pod("b"), gone, going, wanted=2) == Fleet()
    assert judge(pod("a"), pod("b"), gone, going, wanted=3).unready is not None


def test_pods_of_other_workloads_do_not_count() -> None:
    other = pod("x", ready=False)
    other["metadata"]["ownerReferences"][0]["name"] = "other-7d9f8c6b5"
    assert judge(pod("a"), pod("b"), other) == Fleet()


def test_pod_of_an_older_revision_is_a_replica_too() -> None:
    old = pod("b", ready=False)
    old["metadata"]["labels"]["pod-template-hash"] = "aaaa"
    old["metadata"]["ownerReferences"][0]["name"] = "vllm-aaaa"
    assert judge(pod("a"), old).unready is not None


def test_replica_that_was_just_acted_on_counts_as_unready_until_it_is_ready_anew() -> None:
    acted = (action("b", 5),)
    assert judge(pod("a"), pod("b"), pod("c"), actions=acted).unready is not None
    again = pod("b", since=NOW - 4)
    assert judge(pod("a"), again, pod("c"), actions=acted) == Fleet()
    # What had no effect is waited for no longer than ten minutes.
    assert judge(pod("a"), pod("b"), pod("c"), actions=(action("b", 601),)) == Fleet()


def test_ready_in_the_second_of_the_action_is_ready_anew() -> None:
    acted = (Action(NOW - 4.2, "b", "uid-b", "restart"),)
    assert judge(pod("a"), pod("b", since=NOW - 5), pod("c"), actions=acted) == Fleet()


def test_fault_that_makes_all_replicas_unready_is_repaired_one_after_the_other() -> None:
    pods = [pod(name, ready=False) for name in "abc"]
    assert judge(*pods) == Fleet()
    assert judge(*pods, actions=(action("b", 900),)).unready is not None


def test_no_more_actions_in_a_window_than_allowed_across_the_workload() -> None:
    done = tuple(action(name, ago) for name, ago in (("x", 3599), ("y", 3000), ("z", 2000), ("x", 1000), ("b", 900)))
    pods = [pod("a"), pod("b", since=NOW - 100)]
    budget = judge(*pods, actions=done).budget
    assert budget == "5 actions on the workload within 3600 s (remediation.fleet_max_actions is 5)"
    later = (action("x", 3601), *done[1:])
    assert judge(*pods, actions=later) == Fleet()


def test_drain_takes_a_replica_away_and_counts_as_no_action_and_no_restart() -> None:
    drained = tuple(replace(action("b", ago), what=leases.DRAIN) for ago in (900, 20))
    pods = [pod("a"), pod("b")]
    assert judge(*pods, actions=drained, limits=Limits(share=0.3, actions=2, window=3600.0)).budget is None
    assert judge(*pods, actions=drained).unready is not None
    new = pod("new", born=NOW - 10)
    gone = (action("old", 100, 3000), replace(action("old", 50, 3000, 100), what=leases.DRAIN))
    assert leases.inherited(gone, [new], new) == (NOW - 3000, NOW - 100)


def test_group_is_one_replica_and_ready_when_all_its_pods_are() -> None:
    lws: Any = {"leaderworkerset.sigs.k8s.io/name": "r1"}
    index = "leaderworkerset.sigs.k8s.io/group-index"
    pods = [pod(f"r1-{g}-{w}", ready=(g, w) != (1, 1), **lws | {index: str(g)}) for g in range(2) for w in range(2)]
    found = leases.replicas(pods, pods[0])
    assert [(each.key, len(each.pods), each.ready) for each in found] == [("group 0", 2, True), ("group 1", 2, False)]
    assert judge(*pods).unready is not None


def test_label_names_the_group_where_there_is_no_leader_worker_set() -> None:
    pods = [pod("a", engine="one"), pod("b", engine="one"), pod("c")]
    assert [each.key for each in leases.replicas(pods, pods[0], "engine")] == ["c", "group one"]


# Restarts across pods.


def test_pod_inherits_the_restarts_of_the_one_that_it_stands_in_for() -> None:
    done = (action("old", 1000, 3000, 2000),)
    new, before = pod("new", born=NOW - 990), pod("b", born=NOW - 5000)
    assert leases.inherited(done, [new, before], new) == (NOW - 3000, NOW - 2000, NOW - 1000)
    assert leases.inherited(done, [new, before], before) == ()


def test_each_gone_pod_has_one_successor() -> None:
    done = (action("x", 1000), action("y", 900))
    pods = [pod("n1", born=NOW - 800), pod("n2", born=NOW - 700), pod("n3", born=NOW - 600)]
    assert [leases.inherited(done, pods, each) for each in pods] == [(NOW - 1000,), (NOW - 900,), ()]


def test_pod_that_is_there_keeps_its_own_restarts() -> None:
    assert leases.inherited((action("a", 100),), [pod("a"), pod("b", born=NOW - 50)], pod("b", born=NOW - 50)) == ()


def test_successor_of_a_successor_inherits_all_once() -> None:
    first = action("x", 3000)
    second = Action(NOW - 2000, "y", "uid-y", "replace", "i2", (first.at,))
    pods = [pod("z", born=NOW - 1900), pod("other", born=NOW - 1000)]
    assert leases.inherited((first, second), pods, pods[0]) == (NOW - 3000, NOW - 2000)
    assert leases.inherited((first, second), pods, pods[1]) == ()


def test_pod_of_the_same_name_is_the_successor() -> None:
    new = pod("vllm-0", born=NOW - 10)
    new["metadata"]["uid"] = "another"
    elder = pod("vllm-1", born=NOW - 900)
    done = (action("vllm-0", 1000),)
    assert leases.inherited(done, [elder, new], new) == (NOW - 1000,)
    assert leases.inherited(done, [elder, new], elder) == ()
