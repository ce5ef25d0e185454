"""What `dsobs k8s inject` makes of manifests, before the real API server and in the real kubelet."""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dsobs.manifests import Options, inject, remove, sidecar
from dsobs.runtimes.control_folder import Kind, Request, liveness_probe, readiness_probe
from tests.docs.test_docs import ROOT, commands_below
from tests.manifests import golden
from tests.real.kubernetes import Cluster, Namespace
from tests.real.modules import module

pytestmark = pytest.mark.real("cluster")

CRDS = {
    "sigs.k8s.io/lws@v0.7.0": "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",
    "github.com/kserve/kserve@v0.16.0": "config/crd/full/serving.kserve.io_inferenceservices.yaml",
}
"""Go module and the definition in it of a kind that is not Kubernetes' own."""


@pytest.fixture(scope="module")
def kinds(cluster: Cluster) -> Iterator[None]:
    """The cluster knows LeaderWorkerSet and InferenceService, by their projects' own definitions."""
    files = [module(name) / path for name, path in CRDS.items()]
    for file in files:
        # Too large for the annotation of a client's `apply`.
        cluster.kubectl("apply", "--server-side", f"--filename={file}")
    names = [yaml.safe_load(file.read_text())["metadata"]["name"] for file in files]
    cluster.kubectl("wait", "--for=condition=Established", *(f"crd/{name}" for name in names), "--timeout=60s")
    yield
    cluster.kubectl("delete", *(f"crd/{name}" for name in names))


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize("manifest", golden.manifests(), ids=lambda path: path.name)
def test_api_server_takes_every_golden_result_as_it_stands(manifest: Path, namespace: Namespace) -> None:
    text = golden.read(manifest).replace("namespace: llm", f"namespace: {namespace.name}")
    text = text.replace("namespace: chat", f"namespace: {namespace.name}")
    for result in (text, inject(text, manifest.name, Options("dsobs:1", token=True)).text):
        namespace.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=result)


def test_remove_takes_the_sidecar_out_of_what_the_cluster_gives_back(namespace: Namespace) -> None:
    text = golden.read(golden.FOLDER / "deployment.yaml").partition("---")[0]
    namespace.kubectl("apply", "--filename=-", stdin=text)
    plain = json.loads(namespace.kubectl("get", "deployment/chat", "--output=json"))["spec"]["template"]
    namespace.kubectl("apply", "--filename=-", stdin=inject(text, "m.yaml", Options("dsobs:1")).text)
    for output in ("yaml", "json"):
        back = remove(namespace.kubectl("get", "deployment/chat", f"--output={output}"), "m.yaml")
        assert (back.problems, back.remarks) == ([], [])
        found = yaml.safe_load(back.text)["spec"]["template"]
        _without_defaults(found, plain)
        assert found == plain


def _without_defaults(found: dict[str, object], plain: dict[str, object]) -> None:
    """Takes out of the probes what the API server had filled in once and `remove` gives back as it was written."""
    for template in (found, plain):
        metadata, spec = template["metadata"], template["spec"]
        assert isinstance(metadata, dict)
        assert isinstance(spec, dict)
        metadata.pop("creationTimestamp", None)
        container = spec["containers"][0]
        for name in ("livenessProbe", "readinessProbe"):
            probe = container[name]
            for field in ("failureThreshold", "successThreshold", "timeoutSeconds", "periodSeconds"):
                probe.pop(field, None)
            probe["httpGet"].pop("scheme", None)


def pod(cluster: Cluster) -> str:
    """A pod of the simulator, as a user would write it, with the sidecar."""
    tree = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {
            "terminationGracePeriodSeconds": 120,
            # The image of the tests has no user of its own.
            "securityContext": {"runAsUser": 0},
            "containers": [
                {
                    "name": "engine",
                    "image": cluster.dsobs_image,
                    "command": ["python3", "-m", "dsobs.simulator", "--host", "0.0.0.0", "--port", "8123"],
                    "livenessProbe": {"httpGet": {"path": "/health", "port": 8123}},
                }
            ],
        },
    }
    outcome = inject(yaml.safe_dump(tree), "p.yaml", Options(cluster.dsobs_image, container="engine", port=8123))
    assert outcome.problems == []
    return outcome.text


LOGGING = """
import json, logging.config, os, time
logging.config.dictConfig(json.load(open(os.environ["VLLM_LOGGING_CONFIG_PATH"])))
logging.getLogger("vllm.core").error("%s", "written by the engine")
"""


def test_injected_pod_does_what_it_is_for(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(pod(cluster))
    namespace.wait_ready("p", seconds=120)

    # The sidecar runs as nobody in particular, on a root file system that can't be written to, and sees the engine.
    assert namespace.exec("p", "dsobs", "id", "-u").strip() == "65532"
    page = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9940/metrics').read().decode())"
    namespace.wait(
        "the engine's signals on the sidecar's page",
        lambda: "\ndsobs_engine_up 1" in namespace.exec("p", "dsobs", "python3", "-c", page),
    )

    # The engine can read requests and write none, and has no token.
    with pytest.raises(AssertionError, match="Read-only file system"):
        namespace.exec("p", "engine", "sh", "-c", "echo x > /run/dsobs/restart")
    assert namespace.exec("p", "engine", "sh", "-c", f"ls {sidecar.TOKEN_PATH} 2>/dev/null || echo none") == "none\n"

    # Its log goes to a file that the sidecar reads, and on to where records are written.
    assert "written by the engine" in namespace.exec("p", "engine", "python3", "-c", LOGGING)
    # Until it is there the search says that no record fits, which is no success.
    search = ("sh", "-c", f"dsobs logs search 'written by' --since 1h --state-dir {sidecar.STATE_PATH} || true")
    namespace.wait("the shipped line", lambda: "written by the engine" in namespace.exec("p", "dsobs", *search))

    # A warm-up by hand, as the guide says, takes it out of service, without a restart; its end puts it back.
    lines = commands_below(ROOT / "docs/kubernetes.md", "Keep requests away")
    begin, end = (shlex.split(line.replace("deployment/chat", "p"))[1:] for line in lines)
    namespace.kubectl(*begin)
    namespace.wait("a pod that is not ready", lambda: not namespace.ready("p"), 60)
    namespace.kubectl(*end)
    namespace.wait_ready("p")
    assert namespace.restarts("p", "engine") == 0

    # A request restarts the container once, whatever the pod's own grace is.
    begun = time.monotonic()
    write(namespace, Kind.RESTART, 12)
    namespace.wait("restart", lambda: namespace.restarts("p", "engine"), 60)
    print(f"request to new container: {time.monotonic() - begun:.1f} s", file=sys.__stderr__)
    namespace.wait_ready("p")
    assert namespace.restarts("p", "engine") == 1


def test_engine_whose_image_has_no_shell_stays_alive_and_never_gets_ready(
    cluster: Cluster, namespace: Namespace
) -> None:
    """An exec probe that can't be started is thrown away by kubelet: what it takes for granted before the first one
    stays, alive and not ready."""
    container = {
        "name": "engine",
        "image": cluster.busybox.name,
        "command": ["/bin/sleep", "1000"],
        "env": [{"name": "PATH", "value": "/nowhere"}],
        "livenessProbe": liveness_probe(),
        "readinessProbe": readiness_probe(None),
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})

    def errors(kind: str) -> int:
        found = [each for each in namespace.events("p") if f"{kind} probe errored" in each["message"]]
        return sum(int(each.get("count") or 1) for each in found)

    namespace.wait("probes that can't be started", lambda: errors("Liveness") > 2 and errors("Readiness") > 1, 90)
    assert namespace.restarts("p", "engine") == 0
    assert not namespace.ready("p")


def write(namespace: Namespace, kind: Kind, seconds: int) -> None:
    """A request by hand, in the form of the sidecar's own."""
    line = Request(int(time.time()) + seconds, None, "test").line()
    script = f"printf '%s' '{line}' > /run/dsobs/.t && mv /run/dsobs/.t /run/dsobs/{kind}"
    namespace.exec("p", "dsobs", "sh", "-c", script)
