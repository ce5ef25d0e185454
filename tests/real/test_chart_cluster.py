"""The Helm chart in a real cluster: the guide word by word, an operator's kinds, cards by UUID; and nothing stays."""

import functools
import http.client
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import CHART, EXAMPLES, ROOT, rendered
from tests.docs.test_docs import blocks, commands_below
from tests.real.docker import Dockerd
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.device_plugin import DevicePlugin
from tests.real.kubernetes.policies import answers, heeded, outsider
from tests.real.kubernetes.serving import Pager, event, pager
from tests.real.kubernetes.tools import home
from tests.real.modules import module

pytestmark = pytest.mark.real("cluster")
GUIDE = ROOT / "docs/kubernetes.md"
WEBHOOK = "https://alerts.example.com/dsobs"
OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
CARDS = ("GPU-11111111-1111-1111-1111-111111111111", "GPU-22222222-2222-2222-2222-222222222222")
KINDS = (
    "deployments,daemonsets,services,configmaps,secrets,serviceaccounts,roles,rolebindings,leases,networkpolicies,pods"
)


@pytest.fixture
def inference(cluster: Cluster) -> Iterator[Namespace]:
    """The namespace that the guide makes and takes away."""
    path = "/api/v1/namespaces/inference"
    yield Namespace(cluster, "inference")
    cluster.request("DELETE", path)
    cluster.wait("end of the namespace", lambda: cluster.request("GET", path)[0] == 404, 120)


@pytest.fixture
def paged(cluster: Cluster) -> Iterator[Pager]:
    with pager(cluster) as found:
        yield found


def commands(heading: str) -> list[str]:
    """Of the guide's `sh` blocks below this heading, a line each."""
    return commands_below(GUIDE, heading)


class Shell:
    """Runs the guide's lines in a folder of its own; kubectl, helm and ctr are the cluster's, docker is the test's."""

    def __init__(self, folder: Path, cluster: Cluster, daemon: Dockerd) -> None:
        self._folder = folder
        tools = folder / "bin"
        tools.mkdir()
        (folder / "deploy").symlink_to(ROOT / "deploy")
        for name in ("pyproject.toml", "uv.lock", "README.md", "alerts", "dsobs", "exporters"):
            (folder / name).symlink_to(ROOT / name)
        assert cluster.host is not None
        helm_places = " ".join(f"HELM_{kind}_HOME={folder}/helm" for kind in ("CACHE", "CONFIG", "DATA"))
        inside = " ".join(cluster.host.words(_program("ctr"), f"--address={cluster.folder}/containerd.sock"))
        # The test's Docker daemon has no bridge, so its builds use the host's network; the context is this repository.
        build = f'[ "$1" = build ] && {{ shift; cd {ROOT}; set -- build --network=host "$@"; }}'
        docker = f'{build}\nDOCKER_HOST={daemon.host} DOCKER_BUILDKIT=0 exec {_program("docker")} "$@"'
        for name, text in {
            "kubectl": f'exec {home()}/kubectl --kubeconfig={cluster.kubeconfig} "$@"',
            "helm": f'{helm_places} KUBECONFIG={cluster.kubeconfig} exec {home()}/helm "$@"',
            "ctr": f'exec {inside} "$@"',
            "docker": docker,
            "dsobs": f'exec {ROOT}/.venv/bin/dsobs "$@"',
        }.items():
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        self._path = f"{tools}:{os.environ['PATH']}"

    def __call__(self, line: str) -> str:
        """What the line printed; AssertionError where it fails."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "PATH": self._path},
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, name
    return found


@pytest.fixture
def shell(cluster: Cluster, image_daemon: Dockerd, tmp_path: Path) -> Shell:
    return Shell(tmp_path, cluster, image_daemon)


def names(namespace: Namespace) -> set[str]:
    """kind/name of what is in the namespace, without what Kubernetes makes by itself."""
    found = namespace.kubectl("get", KINDS, "--output=name").split()
    own = ("configmap/kube-root-ca.crt", "serviceaccount/default")
    return {name for name in found if name not in own}


def test_guide_leads_from_nothing_to_the_first_page_and_back_to_nothing(
    inference: Namespace, shell: Shell, paged: Pager, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = commands("From nothing to the first page")
    assert len(lines) == 9
    assert not paged.pages
    at = {word: next(n for n, line in enumerate(lines) if word in line) for word in ("helm install", "STOP", " logs ")}
    for line in lines[: at["helm install"]]:
        shell(line)
    begun = time.time()
    shell(lines[at["helm install"]].replace(WEBHOOK, paged.url))
    (pod,) = [each["metadata"]["name"] for each in inference.all("pods")]
    inference.wait("dsobs to know its engine", lambda: event(inference, "engine-ready", pod), 240)
    installed = time.time()
    shell(lines[at["STOP"]])
    stopped = time.time()
    inference.wait("page", lambda: "EngineHung" in paged.names(), 180)
    told = time.time()
    inference.wait("the new container", lambda: inference.restarts(pod, "vllm"), 150)
    inference.wait_ready(pod)
    assert "EngineHung" in shell(lines[at[" logs "]])
    for line in lines[at[" logs "] + 1 :]:
        shell(line)
        if line.startswith("helm upgrade"):
            settings = (inference.get("configmaps", "trial-dsobs") or {})["data"]["dsobs.yaml"]
            assert yaml.safe_load(settings)["log"]["level"] == "debug"
            assert yaml.safe_load(settings)["notifiers"]["webhook"]["url"] == paged.url
            # kubelet brings a changed ConfigMap with its next look at the pod: at once, where the pod changes.
            inference.kubectl("annotate", "pod", pod, "looked=1")
            inference.wait("the new settings", lambda: "changed: log.level" in inference.logs(pod, "dsobs"), 120)
            assert [each["metadata"]["name"] for each in inference.all("pods")] == [pod]
            assert inference.restarts(pod, "vllm") == 1
        elif line.startswith("helm uninstall"):
            inference.wait("end of all that was there", lambda: not names(inference), 180)
    with capsys.disabled():
        print(f"\nguide: `helm install` to ready {installed - begun:.1f} s, stop to page {told - stopped:.1f} s")


def test_commands_of_the_guide_about_the_chart_and_about_inject_run(
    cluster: Cluster, inference: Namespace, shell: Shell, tmp_path: Path
) -> None:
    """With no card in the cluster the pods wait for one; what is installed is what is looked at."""
    (tmp_path / "vllm.yaml").write_text(next(b for b in blocks() if b.page == GUIDE and b.language == "yaml").text)
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: own, version: 1.0.0}")
    (chart / "templates/vllm.yaml").write_text((tmp_path / "vllm.yaml").read_text())
    try:
        for heading in ("With the chart", "Put the sidecar beside vLLM", "How many act at once"):
            lines = commands(heading)
            assert lines
            for line in lines:
                shell(line)
        assert {"deployment.apps/chat-vllm", "daemonset.apps/chat-dsobs-nvml"} <= names(inference)
        assert inference.get("roles", "dsobs") is not None
        deployed = json.loads(cluster.kubectl("get", "deployment", "chat", "--output=json"))
        assert deployed["spec"]["template"]["spec"]["initContainers"][0]["name"] == "dsobs"
        shell("helm uninstall chat --namespace inference --wait")
        # Helm waits for what it installed; the pods of a DaemonSet end after it.
        inference.wait("end of it", lambda: not [name for name in names(inference) if "chat" in name], 180)
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "deployment/chat", "--wait=false")


def test_engine_ends_before_dsobs_and_its_last_lines_are_read(
    cluster: Cluster, namespace: Namespace, loaded_image: str, shell: Shell
) -> None:
    shell(f"helm install t deploy/helm/dsobs --namespace {namespace.name} --values {EXAMPLES}/simulator.yaml")
    (pod,) = namespace.wait("pod", lambda: [each["metadata"]["name"] for each in namespace.all("pods")])
    namespace.wait_ready(pod, seconds=120)
    namespace.wait("ready engine", lambda: event(namespace, "engine-ready", pod), 120)
    engine = cluster.pids(namespace.status(pod, "vllm")["containerID"])
    dsobs = cluster.pids(namespace.status(pod, "dsobs")["containerID"])
    namespace.kubectl("delete", "pod", pod, "--wait=false")
    ended: dict[str, float] = {}
    while len(ended) < 2:
        for name, pids in (("engine", engine), ("dsobs", dsobs)):
            if name not in ended and not any(Path(f"/proc/{pid}").exists() for pid in pids):
                ended[name] = time.monotonic()
        time.sleep(0.05)
    assert ended["engine"] < ended["dsobs"]


def test_engine_has_no_token_and_the_sidecar_has_one(
    cluster: Cluster, namespace: Namespace, loaded_image: str, shell: Shell
) -> None:
    shell(f"helm install t deploy/helm/dsobs --namespace {namespace.name} --values {EXAMPLES}/simulator.yaml --wait")
    (pod,) = [each["metadata"]["name"] for each in namespace.all("pods")]
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert namespace.exec(pod, "dsobs", "sh", "-c", f"read -r t < {token}; echo $t").count(".") == 2
    assert namespace.exec(pod, "vllm", "sh", "-c", f"test -e {token} && echo there || echo none").strip() == "none"


@pytest.fixture
def operator(cluster: Cluster) -> Iterator[None]:
    """The cluster knows the Prometheus operator's kinds, by its own definitions."""
    folder = module(OPERATOR) / "example/prometheus-operator-crd"
    files = [folder / f"monitoring.coreos.com_{name}.yaml" for name in ("podmonitors", "prometheusrules")]
    for file in files:
        cluster.kubectl("apply", "--server-side", f"--filename={file}")
    crds = [f"crd/{yaml.safe_load(file.read_text())['metadata']['name']}" for file in files]
    cluster.kubectl("wait", "--for=condition=Established", *crds, "--timeout=60s")
    yield
    cluster.kubectl("delete", *crds)


@pytest.mark.usefixtures("operator")
def test_operators_kinds_are_installed_where_the_cluster_knows_them(namespace: Namespace, shell: Shell) -> None:
    words = f"t deploy/helm/dsobs --namespace {namespace.name}"
    shell(f"helm install {words} --set settings.rules.evaluation=prometheus")
    kinds = "podmonitors.monitoring.coreos.com,prometheusrules.monitoring.coreos.com"
    found = namespace.kubectl("get", kinds, "--output=name").split()
    assert len(found) == 1 + len(list((ROOT / "alerts").glob("*.rules.yaml")))
    shell(f"helm upgrade {words} --reset-values")
    assert len(namespace.kubectl("get", kinds, "--output=name").split()) == 2
    shell(f"helm uninstall t --namespace {namespace.name} --wait")
    assert namespace.kubectl("get", kinds, "--output=name").split() == []


def test_api_server_takes_every_example_as_it_stands(namespace: Namespace) -> None:
    for example in ("vllm-gpu", "vllm-cpu"):
        objects = rendered(example, f"--namespace={namespace.name}", "--set=nvml.enabled=true").values()
        text = yaml.safe_dump_all(objects)
        namespace.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=text)


def card(index: int) -> dict[str, Any]:
    """A record of dsobs-nvml."""
    return {"index": index, "uuid": CARDS[index], "name": "card", "mem_total": 1 << 34, "mem_used": (index + 1) << 30}


def test_each_sidecar_reads_its_own_pods_card_from_the_nodes_exporter(
    cluster: Cluster, namespace: Namespace, loaded_image: str, shell: Shell, tmp_path: Path
) -> None:
    """Cards are a recording's, given to kubelet by a device plugin; kubelet, its socket and its word are real."""
    recording = json.dumps([card(0), card(1)]) + "\n"
    namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "r"}, "data": {"r": recording}})
    values = yaml.safe_load((EXAMPLES / "simulator.yaml").read_text())
    limits = {"nvidia.com/gpu": 1, "memory": "512Mi"}
    values["vllm"] |= {"replicas": 2, "resources": {"requests": {"cpu": "100m"}, "limits": limits}}
    values["nvml"] = {
        "enabled": True,
        "podResources": f"{cluster.folder}/kubelet/pod-resources",
        "args": ["--recording=/recording/r"],
        "volumes": [{"name": "r", "configMap": {"name": "r"}}],
        "volumeMounts": [{"name": "r", "mountPath": "/recording"}],
    }
    (tmp_path / "values.json").write_text(json.dumps(values))
    words = f"t deploy/helm/dsobs --namespace {namespace.name} --values values.json"
    with DevicePlugin(cluster.folder, "nvidia.com/gpu", CARDS):
        # Pods here have no DNS: the exporter is installed first, and its service's address is told.
        shell(f"helm install {words} --set vllm.enabled=false --wait")
        service = (namespace.get("services", "t-dsobs-nvml") or {})["spec"]["clusterIP"]
        shell(f"helm upgrade {words} --set settings.gpu.source=http://{service}:9941")
        selector = "app.kubernetes.io/name=vllm"
        namespace.wait("two pods", lambda: len(namespace.all("pods", selector)) == 2)
        pods = [each["metadata"]["name"] for each in namespace.all("pods", selector)]
        namespace.wait_ready(*pods, seconds=180)
        seen = {
            pod: namespace.wait(f"the card of {pod}", functools.partial(cards, cluster, namespace, pod)) for pod in pods
        }
    assert all(len(own) == 1 for own in seen.values())
    assert {uuid for own in seen.values() for uuid in own} == set(CARDS)
    for own in seen.values():
        ((uuid, used),) = own.items()
        assert used == (CARDS.index(uuid) + 1) << 30


def cards(cluster: Cluster, namespace: Namespace, pod: str) -> dict[str, float]:
    """UUID → bytes in use, as a pod's sidecar tells it."""
    way = cluster.forwarded(f"{namespace.address(pod)}:9940")
    try:
        with urllib.request.urlopen(f"http://{way}/metrics", timeout=10) as page:
            text = page.read().decode()
    except (OSError, http.client.HTTPException):
        # It does not listen yet.
        return {}
    lines = re.findall(r'^dsobs_gpu_memory_used_bytes\{[^}]*uuid="([^"]+)"[^}]*\} (\S+)$', text, re.MULTILINE)
    return {uuid: float(value) for uuid, value in lines}


def test_wrong_value_installs_nothing(namespace: Namespace) -> None:
    with pytest.raises(AssertionError, match="additional properties 'replica' not allowed"):
        namespace.cluster.helm("install", "t", str(CHART), f"--namespace={namespace.name}", "--set=vllm.replica=1")
    assert names(namespace) == set()


def client(cluster: Cluster, namespace: Namespace) -> tuple[str, ...]:
    """Words before a command that make it run in a pod there."""
    container = {"name": "client", "image": cluster.busybox.name, "command": ["sleep", "3600"]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"}, "spec": spec})
    namespace.wait_ready("client")
    kubectl = (f"{home()}/kubectl", f"--kubeconfig={cluster.kubeconfig}", f"--namespace={namespace.name}")
    return (*kubectl, "exec", "client", "--")


def test_network_policy_lets_whom_it_names_to_dsobs_and_everybody_to_the_engine(
    cluster: Cluster, namespace: Namespace, loaded_image: str, shell: Shell
) -> None:
    words = f"t deploy/helm/dsobs --namespace {namespace.name} --values {EXAMPLES}/simulator.yaml --wait"
    shell(f"helm install {words} --set-json networkPolicy.from=[]")
    (pod,) = [each["metadata"]["name"] for each in namespace.all("pods")]
    address = namespace.address(pod)
    with cluster.namespace() as other, outsider(cluster) as outside, heeded(cluster, address):
        ways = {"beside": client(cluster, namespace), "elsewhere": client(cluster, other), "outside": outside}

        def let_in(port: int) -> set[str]:
            with ThreadPoolExecutor() as pool:
                found = pool.map(lambda way: answers(way, address, port), ways.values())
            return {name for name, let in zip(ways, found, strict=True) if let}

        cluster.wait("the release's own namespace alone at dsobs", lambda: let_in(9940) == {"beside"}, 60)
        assert let_in(8000) == {"beside", "elsewhere", "outside"}
        # As it comes: every pod of the cluster.
        shell(f"helm upgrade {words}")
        cluster.wait("pods of the cluster at dsobs", lambda: let_in(9940) == {"beside", "elsewhere"}, 60)
        assert let_in(8000) == {"beside", "elsewhere", "outside"}
        shell(f"helm upgrade {words} --set networkPolicy.enabled=false")
        cluster.wait("everybody at dsobs", lambda: let_in(9940) == {"beside", "elsewhere", "outside"}, 60)
