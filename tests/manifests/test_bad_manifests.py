"""What can't be used is refused, all at once, with file and line, and nothing is done."""

import pytest

from dsobs.manifests import Options, inject
from tests.manifests.test_inject import OPTIONS, POD

HEAD = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"
TWO = HEAD + (
    "  containers:\n"
    "  - {name: prefill, image: vllm/vllm-openai, args: [--port=8100]}\n"
    "  - {name: decode, image: vllm/vllm-openai, args: [--port=8200]}\n"
)
CASES = {
    "nothing": ("", ["m.yaml: holds nothing; give it a manifest"]),
    "comments": ("# only\n---\n# comments\n", ["m.yaml: holds nothing; give it a manifest"]),
    "no YAML": (
        "kind: Pod\n  metadata: [\n",
        ["m.yaml:2: is no YAML (mapping values are not allowed in this context)"],
    ),
    "a tab": (
        "kind: Pod\nmetadata:\n\tname: x\n",
        [
            "m.yaml:3: is no YAML (while scanning for the next token, found character that cannot start any token; "
            "YAML is indented with spaces, never with tabs)"
        ],
    ),
    "a template": (
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Release.Name }}\n  {{- with .x }}\n",
        ["m.yaml:4: is no YAML ("],
    ),
    "no manifest": (
        "just: text\n---\n- a list\n---\nplain\n",
        [
            "m.yaml:1: is no object of Kubernetes: it has no apiVersion and no kind; write them or take it out",
            "m.yaml:3: is no object of Kubernetes; write apiVersion, kind, metadata and spec, or take it out",
            "m.yaml:5: is no object of Kubernetes; write apiVersion, kind, metadata and spec, or take it out",
        ],
    ),
    "a key twice": (
        POD.replace("    args:", "    image: other\n    args:"),
        ["m.yaml:9: image stands there twice, first in line 8; take one of them out"],
    ),
    "no workload": (
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n",
        [
            "m.yaml: has no workload; dsobs looks for Pod, ReplicationController, Deployment, StatefulSet, DaemonSet, "
            "ReplicaSet, Job, CronJob, Rollout, LeaderWorkerSet, InferenceService"
        ],
    ),
    "an unknown kind": (
        "apiVersion: x.io/v1\nkind: Fleet\nspec: {pods: [{image: 'vllm/vllm-openai:v1'}]}\n",
        ["m.yaml:1: Fleet is no kind that dsobs knows; it knows Pod, ReplicationController, Deployment, "],
    ),
    "no vLLM": (
        HEAD + "  containers:\n  - {name: web, image: nginx}\n  - {name: log, image: fluent/fluent-bit}\n",
        [
            "m.yaml: no container runs vLLM as far as can be told (Pod/p has web, log); name it with --container",
        ],
    ),
    "two engines": (
        TWO,
        ["m.yaml:5: Pod/p: 2 containers may be the engine: prefill, decode; choose with --container prefill"],
    ),
    "no pod": ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {replicas: 1}\n", ["m.yaml:4: "]),
    "restartPolicy Never": (
        POD + "  restartPolicy: Never\n",
        [
            "m.yaml:10: Pod/p: restartPolicy is Never: kubelet would not start the engine again after a restart that "
            "dsobs asks for, and the pod would end; write Always (a Job takes OnFailure)"
        ],
    ),
    "a port that is not told": (
        POD.replace("--model, m", "--model, m, --port, $(PORT)"),
        ["m.yaml:7: Pod/p: the engine's port is $(PORT), which the manifest does not tell; say it with --port"],
    ),
    "a socket": (
        POD.replace("--model, m", "--uds=/run/v.sock"),
        [
            "m.yaml:7: Pod/p: the engine of container engine listens on a Unix socket (--uds), which dsobs can't ask; "
            "give it --host and --port"
        ],
    ),
    "a container named dsobs": (
        POD + "  initContainers: [{name: dsobs, image: x}]\n",
        [
            "m.yaml:10: Pod/p: has a container dsobs that `dsobs k8s inject` has not made; take it out or rename it",
        ],
    ),
    "a volume of that name": (
        POD + "  volumes: [{name: dsobs-logs, emptyDir: {}}]\n",
        ["m.yaml:10: Pod/p: has a volume dsobs-logs that `dsobs k8s inject` has not made; rename it"],
    ),
    "a mount in the way": (
        POD + "    volumeMounts: [{name: run, mountPath: /run/dsobs}]\n",
        ["m.yaml:10: Pod/p: container engine mounts run at /run/dsobs, which dsobs needs; move it"],
    ),
    "a shared list": (
        POD.replace("args:", "env: &e [{name: A, value: b}]\n    args:") + "  - {name: other, image: x, env: *e}\n",
        [
            "m.yaml:9: Pod/p: spec.containers[engine].env is shared through an anchor (`&`) and an alias (`*`), so "
            "that a change would show in another place too; write it out in both"
        ],
    ),
    "a merged list": (
        "x-base: &b {env: [{name: A, value: b}]}\n" + POD.replace("args:", "<<: *b\n    args:"),
        ["m.yaml:8: Pod/p: spec.containers[engine].env comes from a merge (`<<`); write it out there"],
    ),
    "workers and leader alike": (
        "apiVersion: leaderworkerset.x-k8s.io/v1\nkind: LeaderWorkerSet\nmetadata: {name: l}\nspec:\n"
        "  leaderWorkerTemplate:\n    size: 4\n    workerTemplate:\n      spec:\n        containers:\n"
        "        - {name: v, image: vllm/vllm-openai, args: [--model=m]}\n",
        [
            "m.yaml:7: LeaderWorkerSet/l: workerTemplate makes the leader and 3 workers alike, and only the leader "
            "serves; write a leaderTemplate of its own"
        ],
    ),
    "line ends of old": (
        POD.replace("\n", "\r"),
        ["m.yaml:1: has carriage returns that end no line (CR without LF); save it with LF or CRLF as line ends"],
    ),
    "a byte order mark in the middle": (
        POD + "\ufeff---\n" + POD,
        ["m.yaml:10: has a byte order mark in the middle, as files have that were put together; take it out"],
    ),
    "containers that are no list": (
        HEAD + "  containers: {name: v, image: vllm/vllm-openai}\n",
        ["m.yaml:5: Pod/p: containers is no list; write each container behind a dash"],
    ),
    "a broken record": (
        POD.replace("name: p", "name: p\n  annotations: {dsobs.io/injected: nonsense}"),
        ["m.yaml:5: Pod/p: the annotation dsobs.io/injected is not as dsobs writes it; take it out, or restore it"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_manifest_is_refused_with_file_and_line(name: str) -> None:
    text, expected = CASES[name]
    outcome = inject(text, "m.yaml", OPTIONS)
    found = [str(problem) for problem in outcome.problems]
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start), found
    assert outcome.text == text


def test_template_of_helm_is_named_as_one() -> None:
    (problem,) = inject(CASES["a template"][0], "m.yaml", OPTIONS).problems
    assert "it looks like a template of Helm: render it first, `helm template … | dsobs k8s inject -`" in str(problem)


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file() -> None:
    text = "---\n".join([POD + "  restartPolicy: Never\n", TWO, "kind: Pod\n  x: [\n"])
    assert [problem.line for problem in inject(text, "m.yaml", OPTIONS).problems] == [10, 16, 21]


def test_container_is_chosen_by_name() -> None:
    outcome = inject(TWO, "m.yaml", Options("i", container="decode"))
    assert outcome.problems == []
    assert "dsobs watches container decode at http://127.0.0.1:8200" in str(outcome.remarks)
    (problem,) = inject(TWO, "m.yaml", Options("i", container="nobody")).problems
    assert str(problem) == "m.yaml: no workload has a container nobody (Pod/p has prefill, decode)"
