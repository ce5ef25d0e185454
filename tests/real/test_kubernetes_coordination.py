"""Several sidecars of one workload on a real cluster: one acts at a time, enough stay ready, pods are replaced."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsobs.runtimes.kubernetes.lease import DURATION_SECONDS
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.scenes import Stage, scene
from tests.real.kubernetes.serving import Pager, clients, pager
from tests.real.kubernetes.workloads import ROOT, actions, level, names, pods, ready, stop_cores, up, workload

pytestmark = pytest.mark.real("kubernetes")
LONG = os.environ.get("LONG_TESTS") == "1"
SOON = {"remediation.confirm_hang": "5"}
"""A hang is certain after a quarter of a minute."""
AWAY_SECONDS = 120.0 if LONG else DURATION_SECONDS + 10
"""Of the API server: longer than a Lease lasts."""
QUIET_SECONDS = 90.0 if LONG else 35.0
"""Longer than from such a hang to its restart."""


@scene
def test_same_fault_in_three_replicas_leaves_two_ready_at_any_time(stage: Stage) -> str:
    cluster, namespace, paged = stage.cluster, stage.namespace, stage.paged
    level(namespace, "lease")
    settings = {**SOON, "notifiers.webhook.url": paged.url}
    namespace.apply(workload(cluster, "Deployment", 3, settings=settings, engine=("--load-seconds", "3")))
    found = up(namespace, 3)
    with clients(cluster, namespace, *found, number=1):
        stop_cores(namespace, found)
        begun, fewest = time.time(), 3
        while [namespace.restarts(name, "engine") for name in found] != [1, 1, 1] or ready(namespace) < 3:
            assert time.time() - begun < 420, namespace.kubectl("describe", "pods")[-6000:]
            fewest = min(fewest, ready(namespace))
            time.sleep(0.2)
    took = time.time() - begun
    done = actions(namespace, "dsobs-deployment-vllm")
    assert fewest == 2
    assert sorted(action["pod"] for action in done) == sorted(found)
    assert paged.names().count("EngineHung") == 3

    def released() -> dict[str, Any] | None:
        lease = namespace.get("leases", "dsobs-deployment-vllm")
        return lease if lease is not None and lease["spec"].get("holderIdentity", "") == "" else None

    # Who acted last gives it back once its engine is well.
    lease = namespace.wait("the Lease, held by nobody", released, 120)
    assert lease is not None
    assert lease["metadata"]["ownerReferences"][0]["kind"] == "Deployment"
    return f"three hangs at once: all repaired after {took:.0f} s, never fewer than {fewest} ready"


@scene
def test_engine_of_two_pods_is_restarted_as_a_whole_and_once(stage: Stage) -> None:
    cluster, namespace, paged = stage.cluster, stage.namespace, stage.paged
    level(namespace, "restart")
    settings = {**SOON, "notifiers.webhook.url": paged.url, "runtime.group_label": "engine"}
    namespace.apply(workload(cluster, "StatefulSet", 2, settings=settings, labels={"engine": "one"}))
    found = up(namespace, 2)
    before = {each["metadata"]["uid"] for each in pods(namespace)}
    with clients(cluster, namespace, *found, number=1):
        stop_cores(namespace, found)

        def all_new() -> bool:
            now = {each["metadata"]["uid"] for each in pods(namespace)}
            return len(now) == 2 and not now & before

        namespace.wait("two other pods", all_new, 240)
    up(namespace, 2)
    after = {each["metadata"]["uid"] for each in pods(namespace)}
    time.sleep(QUIET_SECONDS)
    assert {each["metadata"]["uid"] for each in pods(namespace)} == after
    (action,) = actions(namespace, "dsobs-statefulset-vllm")
    assert action["pod"] in found
    assert [namespace.restarts(name, "engine") for name in found] == [0, 0]


@dataclass(frozen=True)
class Watched:
    """The only replica of a workload, at work, with a sidecar that acts by the Lease."""

    namespace: Namespace
    pod: str
    engine: list[int]
    """Processes of its container."""
    paged: Pager


@pytest.fixture
def watched(cluster: Cluster) -> Iterator[Watched]:
    with cluster.namespace() as namespace, pager(cluster) as paged:
        level(namespace, "lease")
        settings = {**SOON, "notifiers.webhook.url": paged.url}
        namespace.apply(workload(cluster, "Deployment", 1, settings=settings))
        (name,) = up(namespace, 1)
        with clients(cluster, namespace, name, number=1):
            yield Watched(namespace, name, cluster.pids(namespace.status(name, "engine")["containerID"]), paged)


class Contenders:
    """Processes that want one turn."""

    def __init__(self, cluster: Cluster, namespace: Namespace, found: list[str], folder: Path) -> None:
        token = namespace.token("dsobs")
        self.files = [folder / name for name in found]
        self.processes = []
        self.ended: dict[int, float] = {}
        """Process → when it was killed or stopped."""
        for name, file in zip(found, self.files, strict=True):
            words = (cluster.url, str(cluster.folder / "pki/ca.crt"), token, namespace.name, name)
            with file.open("w") as out:
                module = (sys.executable, "-m", "tests.real.kubernetes.contender")
                self.processes.append(
                    subprocess.Popen((*module, *words), stdout=out, stderr=subprocess.DEVNULL, cwd=ROOT)
                )

    def lines(self, index: int) -> list[tuple[str, float]]:
        words = [line.split() for line in self.files[index].read_text().splitlines()]
        assert all(len(each) == 2 for each in words), self.files[index].read_text()
        return [(what, float(at)) for what, at in words]

    def holder(self) -> list[int]:
        """Which has the turn, at most one."""
        for index in range(len(self.files)):
            told = self.lines(index)
            if index not in self.ended and told and told[-1][0] in ("begin", "step"):
                return [index]
        return []

    def stop_holder(self) -> list[int]:
        """Stops the one that has the turn, and surely in its middle; none, where it was just over."""
        for index in self.holder():
            self.processes[index].send_signal(signal.SIGSTOP)
            told = [what for what, _ in self.lines(index)]
            steps = list(reversed(told)).index("begin")
            if told[-1] != "end" and steps < 3:
                return [index]
            self.processes[index].send_signal(signal.SIGCONT)
        return []

    def turns(self) -> list[tuple[float, float, int]]:
        """(first moment, last step, who) of each turn, in their order."""
        found = []
        for index in range(len(self.files)):
            begun: float | None = None
            last = 0.0
            for what, at in [*self.lines(index), ("end", 0.0)]:
                if what in {"begin", "end"}:
                    if begun is not None:
                        found.append((begun, last, index))
                    begun = at if what == "begin" else None
                if what != "end":
                    last = at
        return sorted(found)

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_sidecars_that_race_never_act_together_whoever_dies_and_whatever_is_away(
    cluster: Cluster, namespace: Namespace, watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level(namespace, "lease")
    idle = {"name": "engine", "image": cluster.busybox.name, "command": ["sleep", "1000"]}
    namespace.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "vllm"},
            "spec": {
                "replicas": 4,
                "selector": {"matchLabels": {"app": "vllm"}},
                "template": {
                    "metadata": {"labels": {"app": "vllm"}},
                    "spec": {"containers": [idle], "terminationGracePeriodSeconds": 0},
                },
            },
        }
    )
    namespace.wait("pods", lambda: ready(namespace) == 4)
    contenders = Contenders(cluster, namespace, names(namespace), tmp_path)

    def turns_after(moment: float) -> list[tuple[float, float, int]]:
        return [turn for turn in contenders.turns() if turn[0] > moment]

    try:
        namespace.wait("turns", lambda: len(contenders.turns()) >= 5, 180)
        # The holder dies in the middle.
        (dead,) = namespace.wait("holder", contenders.stop_holder, 90)
        contenders.processes[dead].send_signal(signal.SIGKILL)
        killed = contenders.ended[dead] = time.monotonic()
        namespace.wait("another", lambda: turns_after(killed), 120)
        taken_over = turns_after(killed)[0][0] - killed
        # The API server is away. An engine that hangs then is paged, and restarted once its sidecar may act again.
        stop_cores(watched.namespace, [watched.pod])
        away = time.monotonic()
        with cluster.api_server_away():
            cluster.wait("page meanwhile", lambda: "EngineHung" in watched.paged.names(), 90)
            time.sleep(max(away + AWAY_SECONDS - time.monotonic(), 0.0))
            assert all(Path(f"/proc/{pid}").exists() for pid in watched.engine)
            back = time.monotonic()
        watched.namespace.wait("restart", lambda: watched.namespace.restarts(watched.pod, "engine") == 1, 180)
        during = [turn for turn in contenders.turns() if away + DURATION_SECONDS < turn[1] < back]
        namespace.wait("turns afterwards", lambda: turns_after(time.monotonic() - 10) and turns_after(back), 180)
        # The holder stands still for longer than a Lease lasts, and goes on.
        (still,) = namespace.wait("holder", contenders.stop_holder, 90)
        stopped = time.monotonic()
        namespace.wait("another", lambda: [t for t in turns_after(stopped) if t[2] != still], 120)
        contenders.processes[still].send_signal(signal.SIGCONT)
        resumed = time.monotonic()
        namespace.wait("turns afterwards", lambda: len(turns_after(resumed)) > 5, 180)
        found = contenders.turns()
    finally:
        contenders.close()
    overlaps = [(one, other) for one, other in itertools.pairwise(found) if other[0] < one[1]]
    with capsys.disabled():
        print(
            f"\n{len(found)} turns of {len(contenders.files)} sidecars, {len(overlaps)} overlaps; taken over "
            f"{taken_over:.1f} s after the holder's death"
        )
    assert overlaps == []
    assert taken_over >= DURATION_SECONDS - 5
    assert during == []


STALE = "dd if=/dev/zero of=/dev/shm/psm_dead bs=1M count=61"
"""Fills the pod's 64 MiB."""
NEEDS_SHM = (
    "dd if=/dev/zero of=/dev/shm/psm_alive bs=1M count=16 2>/dev/null || exit 1; rm /dev/shm/psm_alive; "
    "exec python3 -m dsobs.simulator --host 0.0.0.0 --port 8000"
)


@scene
def test_pod_whose_shared_memory_is_stale_is_replaced_as_soon_as_the_disruption_budget_allows_it(stage: Stage) -> str:
    """In a cluster whose kubelet waits as long as it always does before it starts anew what crashes."""
    del stage
    with Cluster() as patient, patient.namespace() as namespace, pager(patient) as paged:
        level(namespace, "restart")
        settings = {
            "notifiers.webhook.url": paged.url,
            "host.shm": "/dev/shm",
            "remediation.cooldown": "30",
            "remediation.max_restarts_24h": "20",
        }
        namespace.apply(
            workload(patient, "Deployment", 1, settings=settings, command=["sh", "-c", NEEDS_SHM]),
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": {"name": "vllm"},
                "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "vllm"}}},
            },
        )
        (name,) = up(namespace, 1)
        uid = pods(namespace)[0]["metadata"]["uid"]
        namespace.exec(name, "engine", "sh", "-c", STALE)
        broken = time.time()
        namespace.signal(name, "engine", signal.SIGKILL)

        def refused() -> bool:
            return any("disruption budget allowed no eviction" in json.dumps(page) for page in paged.pages)

        namespace.wait("page of the budget", refused, 180)
        assert [each["metadata"]["uid"] for each in pods(namespace)] == [uid]
        namespace.kubectl("delete", "pdb", "vllm")
        allowed = time.time()

        def replaced() -> bool:
            return [each["metadata"]["uid"] for each in pods(namespace)] not in ([uid], [])

        namespace.wait("another pod", replaced, 240)
        (new,) = up(namespace, 1)
        told = (
            f"stale shared memory: refused by the budget until {allowed - broken:.0f} s after the crash, another pod "
            f"ready {time.time() - allowed:.0f} s after it was allowed"
        )
        done = actions(namespace, "dsobs-deployment-vllm")
        assert [action["what"] for action in done] == ["replace"]
        ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9940/metrics').read().decode())"

        def counted() -> float:
            lines = namespace.exec(new, "dsobs", "python3", "-c", ask).splitlines()
            return max(
                (float(x.split()[-1]) for x in lines if x.startswith("dsobs_container_restarts_24h{")), default=0
            )

        # The restarts of the pod before count for the one in its place.
        namespace.wait("restarts of the pod before", lambda: counted() >= len(done[0]["restarts"]) + 1 > 1, 60)
        return told


# Roles.

BASIC = {"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"}
"""What every account may ask, by the cluster's own roles."""


def flat(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule.get("apiGroups", [""])
        for resource in rule.get("resources", [])
        if resource not in BASIC
    }


@pytest.mark.parametrize("name", ["none", "lease", "restart", "scale"])
def test_role_of_a_level_can_do_what_it_says_and_nothing_else(
    cluster: Cluster, namespace: Namespace, name: str
) -> None:
    role = level(namespace, name)
    token = namespace.token("dsobs")
    review = {"kind": "SelfSubjectRulesReview", "apiVersion": "authorization.k8s.io/v1"}
    status, told = cluster.request(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        {**review, "spec": {"namespace": namespace.name}},
        token=token,
    )
    assert status == 201
    assert told["status"]["incomplete"] is False
    assert flat(told["status"]["resourceRules"]) == flat(role["rules"] if role is not None else [])

    def may(method: str, path: str, body: Any = None) -> bool:
        status, _ = cluster.request(method, path, body, token=token)
        assert status != 401
        return status != 403

    acts = name != "none"
    lease = {"metadata": {"name": "dsobs-pod-x"}, "spec": {"holderIdentity": "x"}}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "x"}}
    assert may("POST", namespace.path("leases"), lease) is acts
    assert may("GET", namespace.path("leases", "dsobs-pod-x")) is acts
    assert may("GET", namespace.path("pods")) is acts
    assert may("POST", f"{namespace.path('pods', 'x')}/eviction", eviction) is (name == "restart")
    assert may("GET", f"{namespace.path('deployments', 'x')}/scale") is (name == "scale")
    assert may("GET", namespace.path("horizontalpodautoscalers")) is (name == "scale")
    for method, path in (
        ("DELETE", namespace.path("pods", "x")),
        ("DELETE", namespace.path("leases", "dsobs-pod-x")),
        ("GET", namespace.path("leases")),
        ("GET", namespace.path("secrets")),
        ("DELETE", namespace.path("deployments", "x")),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/namespaces/default/pods"),
        ("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/x"),
    ):
        assert not may(method, path), (method, path)
