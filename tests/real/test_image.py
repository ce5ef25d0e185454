"""The image: small, not root, on a root file system that can't be written to, and it keeps its pod ready."""

import json
import signal
import time

import pytest
import yaml

from dsobs.manifests import Options, inject
from tests.real import image
from tests.real.docker import Dockerd
from tests.real.kubernetes import Cluster, Namespace

pytestmark = pytest.mark.real("cluster")
SMALLEST = "dsobs.test/small:1"
MOST_BYTES = 150_000_000
KILLS = 5


@pytest.fixture(scope="module")
def daemon(image_daemon: Dockerd) -> Dockerd:
    """One that has both images."""
    image.build(image_daemon, SMALLEST, "--build-arg=EXTRAS=")
    return image_daemon


def killed(namespace: Namespace) -> bool:
    """Whether there was a dsobs to kill."""
    try:
        return bool(namespace.signal("p", "dsobs", signal.SIGKILL, command="/opt/dsobs/bin/dsobs run"))
    except AssertionError:
        return False


def test_image_without_extras_is_small(daemon: Dockerd) -> None:
    size = int(image.docker(daemon, "image", "inspect", "--format={{.Size}}", SMALLEST))
    print(f"image without extras: {size / 1e6:.0f} MB")
    assert size < MOST_BYTES


def test_image_runs_as_nobody_on_a_read_only_root(daemon: Dockerd) -> None:
    config = json.loads(image.docker(daemon, "image", "inspect", "--format={{json .Config}}", SMALLEST))
    assert config["User"] == "65532:65532"
    once = ("run", "--rm", "--network=host", "--read-only", "--cap-drop=ALL")
    assert image.docker(daemon, *once, SMALLEST, "--version").startswith("dsobs ")
    code = "import os, sqlite3, ssl, zoneinfo; ssl.create_default_context(); "
    code += "print(os.getuid(), zoneinfo.ZoneInfo('Asia/Tokyo'))"
    python = image.docker(daemon, *once, "--entrypoint=python3", SMALLEST, "-c", code)
    assert python == "65532 Asia/Tokyo\n"
    for tool in ("apt-get", "dpkg", "pip", "perl"):
        assert "not found" in image.docker(daemon, *once, "--entrypoint=sh", SMALLEST, "-c", tool, check=False)


def test_pod_stays_ready_while_dsobs_is_killed_again_and_again(
    loaded_image: str, cluster: Cluster, namespace: Namespace
) -> None:
    tree = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "engine",
                    "image": cluster.dsobs_image,
                    "command": ["python3", "-m", "dsobs.simulator", "--host", "0.0.0.0", "--port", "8000"],
                }
            ],
        },
    }
    namespace.apply(inject(yaml.safe_dump(tree), "p.yaml", Options(loaded_image, container="engine", port=8000)).text)
    namespace.wait_ready("p", seconds=120)
    for _ in range(KILLS):
        # Its first process, which starts dsobs again, is `dsobs supervise`.
        namespace.wait("dsobs", lambda: killed(namespace), 120)
        for _ in range(10):
            assert namespace.ready("p")
            time.sleep(0.2)
    assert namespace.restarts("p", "dsobs") == 0
    assert namespace.restarts("p", "engine") == 0
