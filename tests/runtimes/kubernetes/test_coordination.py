"""Sidecars of one workload and its Lease, by a stand-in for the API server; the real one is in tests/real."""

import asyncio
import copy
import itertools
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dsobs.config.models import Remediation
from dsobs.model.observation import Unknown
from dsobs.model.runtime import RestartWithoutEffect, RuntimeHeld, RuntimeRefused
from dsobs.model.turn import Fleet
from dsobs.runtimes.kubernetes import coordination as module
from dsobs.runtimes.kubernetes import lease as leases
from dsobs.runtimes.kubernetes.api import REVIEW_SECONDS, Api
from dsobs.runtimes.kubernetes.coordination import LeaseTurn, Surroundings
from dsobs.runtimes.kubernetes.identity import Identity
from dsobs.runtimes.kubernetes.pod import Json
from tests.contracts.runtime_contract import until
from tests.kubernetes_stand_in import ACTING_RIGHTS, NAMESPACE, POD, StandIn, pod_json
from tests.runtimes.kubernetes.accounts import api_of

NAME = "dsobs-deployment-vllm"
NOW = 1_795_000_000.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name, seconds in (
        (leases, "RENEW_SECONDS", 0.05),
        # Longer than a busy machine lets a test stand still.
        (leases, "DEADLINE_SECONDS", 30.0),
        (module, "RETRY_SECONDS", 0.05),
        (module, "RELEASE_SECONDS", 30.0),
    ):
        monkeypatch.setattr(where, name, seconds)


class World:
    """Pods of one Deployment, and the turns of their sidecars."""

    def __init__(self, server: StandIn) -> None:
        self.server = server
        self.time = 1000.0
        """Of each sidecar's own monotonic clock."""
        self.apis: list[Api] = []
        self.turns: list[LeaseTurn] = []

    def add(self, name: str, *, ready: bool = True) -> None:
        pod = copy.deepcopy(pod_json())
        pod["metadata"] |= {"name": name, "uid": f"uid-{name}"}
        pod["status"]["conditions"][0] |= {
            "status": "True" if ready else "False",
            "lastTransitionTime": "2026-11-01T00:00:00Z",
        }
        self.server.further[name] = pod

    async def turn(
        self,
        name: str = POD,
        token: str = "act",
        *,
        clock: float = NOW,
        desired: int | None = None,
        updated: int | None = None,
        group_label: str = "",
        **settings: Any,
    ) -> LeaseTurn:
        """Of the sidecar in the pod of that name, whose rights are known."""
        api = api_of(self.server.url, token, Identity(NAMESPACE, name))

        async def above(_: Json) -> Json | None:
            if desired is None:
                return None
            status = {"replicas": desired, "updatedReplicas": desired if updated is None else updated}
            return {"kind": "Deployment", "metadata": {"name": "vllm"}, "spec": {"replicas": desired}, "status": status}

        around = Surroundings(lambda: self.pod(name), above, lambda _: (NOW - 500,), group_label)
        made = LeaseTurn(api, around, Remediation(**settings), clock=lambda: clock, monotonic=lambda: self.time)
        self.apis.append(api)
        self.turns.append(made)
        made.refusal()
        if token in self.server.tokens:
            await until(lambda: _value(made._background.done() if made._background else False), bool)
        return made

    def pod(self, name: str) -> Any:
        return self.server.pod if name == POD else self.server.further[name]

    def lease(self) -> dict[str, Any]:
        return self.server.leases[NAME]

    def holder(self) -> str:
        return str(self.lease()["spec"]["holderIdentity"])

    def actions(self) -> list[str]:
        found = leases.read_lease(self.lease()).actions
        assert not isinstance(found, Unknown)
        return [action.pod for action in found]


async def _value(value: Any) -> Any:
    return value


@pytest.fixture
async def world() -> AsyncIterator[World]:
    server = StandIn()
    server.tokens |= {"act": ACTING_RIGHTS, "none": frozenset()}
    async with server.serve():
        made = World(server)
        yield made
        for turn in made.turns:
            await turn.close()
            await turn.close()
        for api in made.apis:
            await api.close()


async def test_lease_is_taken_to_act_and_given_back(world: World) -> None:
    turn = await world.turn()
    assert world.server.leases == {}
    async with turn.taken("i1"):
        assert world.holder().startswith(f"{POD}_")
        assert world.actions() == [POD]
        assert turn.lost() is None
    assert world.holder() == ""
    (action,) = leases.read_lease(world.lease()).actions  # type: ignore[misc]
    assert (action.at, action.what, action.incident, action.restarts) == (NOW, "restart", "i1", (NOW - 500,))


async def test_idle_sidecar_asks_nothing_more(world: World) -> None:
    turn = await world.turn()
    asked = len(world.server.asked)
    for _ in range(50):
        world.time += 1.0
        assert (turn.refusal(), turn.fleet()) == (None, Fleet())
        await asyncio.sleep(0)
    assert len(world.server.asked) == asked


async def test_only_one_of_many_that_race_has_the_turn(world: World) -> None:
    names = [f"vllm-{n}" for n in range(8)]
    for name in names:
        world.add(name)
    turns = [await world.turn(name, fleet_breaker=1.0, fleet_max_actions=100) for name in names]
    inside: list[str] = []
    most = 0

    async def act(name: str, turn: LeaseTurn) -> str:
        nonlocal most
        try:
            async with turn.taken("i"):
                inside.append(name)
                most = max(most, len(inside))
                await asyncio.sleep(0.1)
                inside.remove(name)
        except RuntimeHeld as held:
            return str(held)
        return "acted"

    for _ in range(3):
        said = await asyncio.gather(*(act(name, turn) for name, turn in zip(names, turns, strict=True)))
        assert "acted" in said
        assert set(said) - {"acted", "another sidecar of the workload was faster"} <= {
            f"pod {name} acts on Deployment vllm" for name in names
        }
    assert most == 1


async def test_other_is_told_who_acts_and_learns_of_the_end(world: World) -> None:
    world.add("b")
    mine, other = await world.turn(fleet_breaker=1.0), await world.turn("b", fleet_breaker=1.0)
    async with mine.taken("i1"):
        with pytest.raises(RuntimeHeld, match=f"pod {POD} acts on Deployment vllm"):
            async with other.taken("i2"):
                pytest.fail("two at once")
        assert other.fleet().acting == f"pod {POD} acts on Deployment vllm"
    world.time += module.LOOK_SECONDS
    other.wanted()
    await until(lambda: _value(other.fleet()), lambda fleet: fleet == Fleet())


async def test_lease_is_renewed_for_as_long_as_it_is_held(world: World) -> None:
    turn = await world.turn()
    async with turn.taken("i1"):
        first = world.lease()["metadata"]["resourceVersion"]
        await until(lambda: _value(int(world.lease()["metadata"]["resourceVersion"])), lambda now: now > int(first) + 3)
        assert turn.lost() is None


async def test_action_is_cut_off_when_the_lease_cannot_be_renewed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "DEADLINE_SECONDS", 0.5)
    monkeypatch.setattr(module, "RELEASE_SECONDS", 0.3)
    turn = await world.turn()
    cut_off = asyncio.Event()

    async def act() -> None:
        async with turn.taken("i1"):
            world.server.silent.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cut_off.set()
                raise

    with pytest.raises(TimeoutError, match=r"the Lease was lost in the middle of it \(not renewed in time"):
        await act()
    assert cut_off.is_set()


async def test_action_is_cut_off_when_another_has_the_lease(world: World) -> None:
    turn = await world.turn()

    async def act() -> None:
        async with turn.taken("i1"):
            world.lease()["spec"] |= {"holderIdentity": "b_uid-b"}
            world.lease()["metadata"]["resourceVersion"] = "999"
            await asyncio.sleep(30)

    with pytest.raises(TimeoutError, match="it is held by b_uid-b now"):
        await act()
    assert world.holder() == "b_uid-b"


async def test_what_people_change_in_the_lease_does_not_take_it_away(world: World) -> None:
    turn = await world.turn()
    async with turn.taken("i1"):
        world.lease()["metadata"] |= {"labels": {"seen": "yes"}, "resourceVersion": "999"}
        await asyncio.sleep(0.7)
    assert (world.holder(), world.lease()["metadata"]["labels"]) == ("", {"seen": "yes"})


async def test_process_that_stood_still_knows_that_it_may_have_lost_the_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = await world.turn()
    loop = asyncio.get_running_loop()
    async with turn.taken("i1"):
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 60.0)
        lost = turn.lost()
        monkeypatch.setattr(loop, "time", now)
    assert lost == "the Lease was not renewed in time, so another sidecar may act by now"
    assert turn.lost() is None


async def test_holder_that_died_is_succeeded_after_the_duration_seen_here(world: World) -> None:
    world.add("b")
    turn = await world.turn("b", fleet_breaker=1.0)
    spec = {"holderIdentity": f"{POD}_x", "leaseDurationSeconds": 15, "renewTime": "2199-01-01T00:00:00.000000Z"}
    world.server.leases[NAME] = {"metadata": {"name": NAME, "resourceVersion": "5"}, "spec": spec}
    for _ in range(3):
        with pytest.raises(RuntimeHeld, match="acts on"):
            async with turn.taken("i1"):
                pytest.fail("the holder may be alive")
        world.time += 5.0
    async with turn.taken("i1"):
        assert world.holder() == "b_uid-b"
    assert world.lease()["spec"]["leaseTransitions"] == 1


async def test_sidecar_that_was_restarted_in_its_pod_has_its_lease_at_once(world: World) -> None:
    first = await world.turn()
    async with first.taken("i1"):
        kept = copy.deepcopy(world.lease())
    world.server.leases[NAME] = kept
    async with (await world.turn()).taken("i2"):
        assert world.actions() == [POD, POD]


@pytest.mark.parametrize(
    ("error", "noted"), [(RuntimeHeld("no"), []), (RuntimeRefused("no"), []), (RestartWithoutEffect("-"), [POD]),
                         (OSError("lost"), [POD])],
)  # fmt: skip
async def test_only_what_was_surely_not_done_is_forgotten(world: World, error: Exception, noted: list[str]) -> None:
    turn = await world.turn()
    with pytest.raises(type(error)):
        async with turn.taken("i1"):
            raise error
    assert (world.actions(), world.holder()) == (noted, "")


async def test_workload_keeps_its_minimum_of_ready_pods(world: World) -> None:
    world.add("b", ready=False)
    world.add("c")
    turn = await world.turn()
    with pytest.raises(RuntimeHeld, match="2 of 3 replicas would be unready, 1 may be"):
        async with turn.taken("i1"):
            pytest.fail("below the minimum")
    assert turn.fleet().unready is not None
    assert world.server.leases == {}


async def test_replicas_that_there_should_be_count_where_each_pod_is_one(world: World) -> None:
    world.add("b")
    async with (await world.turn("b", desired=2)).taken("i1"):
        pass
    with pytest.raises(RuntimeHeld, match=r"4 of 4 replicas .*; not ready: b, 2 that there should be"):
        async with (await world.turn(desired=4)).taken("i2"):
            pytest.fail("below the minimum")


async def test_roll_out_under_way_is_named_and_not_the_pods_that_it_has_yet_to_make_ready(world: World) -> None:
    world.add("b", ready=False)
    with pytest.raises(RuntimeHeld, match=r"^a roll-out of Deployment vllm is under way \(1 of 2 updated\)$"):
        async with (await world.turn(desired=2, updated=1)).taken("i1"):
            pytest.fail("in the middle of a roll-out")


async def test_engine_of_several_pods_is_one_replica_whatever_number_of_pods_there_should_be(world: World) -> None:
    world.add("b")
    assert world.server.pod is not None
    for pod in (world.server.pod, world.server.further["b"]):
        pod["metadata"]["labels"]["engine"] = "one"
    async with (await world.turn("b", desired=2, group_label="engine")).taken("i1"):
        assert world.actions() == ["b"]


async def test_missing_right_is_said_with_the_rule_that_grants_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.server.tokens["half"] = ACTING_RIGHTS - {("create", "leases"), ("list", "pods")}
    with caplog.at_level(logging.WARNING):
        turn = await world.turn(token="half")
    rule = (
        '{apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs: [create]}; '
        '{apiGroups: [""], resources: ["pods"], verbs: [list]}'
    )
    assert turn.refusal() == (
        f"no right to coordinate with other sidecars by a Lease; add to the Role: {rule}; or set "
        "remediation.coordination"
    )
    assert rule in caplog.text
    world.server.tokens["half"] = ACTING_RIGHTS
    world.time += REVIEW_SECONDS[1]
    turn.refusal()
    await until(lambda: _value(turn.refusal()), lambda why: why is None)


async def test_right_that_comes_a_moment_after_the_pod_is_found_soon_and_one_that_never_comes_is_asked_about_seldom(
    world: World,
) -> None:
    """The API server learns of a Role that is applied together with the pod later than kubelet starts it."""
    world.server.tokens["late"] = frozenset()
    turn = await world.turn(token="late")
    assert turn.refusal() is not None

    def questions() -> int:
        return len([line for line in world.server.asked if "selfsubject" in line])

    asked_at, begun = [], world.time
    for _ in range(130):
        before = questions()
        world.time += 10.0
        turn.refusal()
        await until(lambda: _value(turn._background is not None and turn._background.done()), bool)
        if questions() > before:
            asked_at.append(world.time - begun)
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *asked_at])]
    assert gaps == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0]
    world.server.tokens["late"] = ACTING_RIGHTS
    world.time += REVIEW_SECONDS[1]
    turn.refusal()
    await until(lambda: _value(turn.refusal()), lambda why: why is None)


async def test_nobody_acts_while_the_api_server_does_not_answer(world: World) -> None:
    turn = await world.turn()
    world.server.tokens.clear()
    with pytest.raises(RuntimeHeld, match="whether another sidecar acts is not known: the API server answers 401"):
        async with turn.taken("i1"):
            pytest.fail("nobody was asked")
    assert turn.fleet().acting is not None
    world.server.tokens["act"] = ACTING_RIGHTS
    world.time += module.LOOK_SECONDS
    turn.wanted()
    await until(lambda: _value(turn.fleet()), lambda fleet: fleet == Fleet())


async def test_unreadable_memory_of_the_workload_is_for_a_person(world: World) -> None:
    world.server.leases[NAME] = {
        "metadata": {"name": NAME, "resourceVersion": "5", "annotations": {leases.ACTIONS: "{"}},
        "spec": {"holderIdentity": ""},
    }
    turn = await world.turn()
    with pytest.raises(RuntimeHeld, match="remove the annotation"):
        async with turn.taken("i1"):
            pytest.fail("what was done is not known")
    assert turn.fleet().budget is not None


async def test_restarts_of_the_pod_before_are_known_from_the_start(world: World) -> None:
    gone = leases.Action(NOW - 100, "old", "uid-old", "replace", "i0", (NOW - 200,))
    world.server.leases[NAME] = {
        "metadata": {"name": NAME, "resourceVersion": "5"},
        "spec": {"holderIdentity": ""},
    }
    world.server.leases[NAME] = leases.written(leases.read_lease(world.lease()), NAME, "", (gone,), NOW - 90)
    pod = copy.deepcopy(world.server.pod)
    assert pod is not None
    pod["metadata"]["creationTimestamp"] = "2026-11-24T00:00:00Z"
    world.server.change(pod)
    turn = await world.turn(clock=NOW)
    born = 1795478400.0
    assert born > NOW - 100
    assert turn.inherited == (NOW - 200, NOW - 100)
