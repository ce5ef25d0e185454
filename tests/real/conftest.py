"""What several modules share: a Kubernetes cluster takes its time to start."""

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsobs.manifests import sidecar
from tests.real import image
from tests.real.docker import Dockerd
from tests.real.elasticsearch import Elasticsearch
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.images import Image
from tests.real.kubernetes.scenes import Scenes, play_of, plays_of
from tests.real.vllm import SHARED_FLAGS, VllmProcess

COMPOSE_SECONDS = 3600.0
"""What building it may take."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One for the whole run. A crashing container is started anew after a second at most."""
    with Cluster(crash_loop_seconds=1) as cluster:
        yield cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    """One for the test alone."""
    with cluster.namespace() as namespace:
        yield namespace


@pytest.fixture(scope="session")
def image_daemon() -> Iterator[Dockerd]:
    """A Docker daemon that has built the image of deploy/image."""
    with Dockerd() as daemon:
        image.build(daemon, image.IMAGE)
        yield daemon


@pytest.fixture(scope="session")
def plugin() -> Path:
    """DOCKER_CONFIG with Docker Compose, built where it is not there yet."""
    script = Path(__file__).with_name("compose.sh")
    built = subprocess.run(["bash", script], check=True, stdout=subprocess.PIPE, text=True, timeout=COMPOSE_SECONDS)
    return Path(built.stdout.strip())


@pytest.fixture(scope="session")
def loaded_image(image_daemon: Dockerd, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name under which pods of the cluster find that image."""
    archive = tmp_path_factory.mktemp("image") / "dsobs.tar"
    image.docker(image_daemon, "save", f"--output={archive}", image.IMAGE)
    return cluster.load(Image(image.IMAGE, archive))


@pytest.fixture(scope="session")
def elasticsearch() -> Iterator[Callable[[str], Elasticsearch]]:
    """Version → a server of it, started at first use and one for all: who uses it names streams of its own, and puts or
    takes away the templates that it wants."""
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        started: dict[str, Elasticsearch] = {}

        def end(server: Elasticsearch) -> None:
            runner.run(server.__aexit__(None, None, None))

        def of(version: str) -> Elasticsearch:
            if version not in started:
                server = Elasticsearch(version)
                runner.run(server.__aenter__())
                stack.callback(end, server)
                runner.run(server.close_session())
                started[version] = server
            return started[version]

        yield of


@dataclass(frozen=True)
class SharedVllm:
    """A server for several tests: each takes it at rest, and leaves it so."""

    process: VllmProcess
    first_lines: list[str]
    """What it printed up to its first answer."""
    log: Path
    """Where the file of the logging configuration is, if it has one."""


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedVllm]:
    """Under `dsobs supervise`, in dev mode; test_upgrade.py, the last that has it, ends it."""
    folder = tmp_path_factory.mktemp("vllm")
    environment = {"VLLM_SERVER_DEV_MODE": "1"}
    with VllmProcess(*SHARED_FLAGS, control=folder / "supervise.sock", environment=environment) as process:
        yield SharedVllm(process, process.first_lines(), folder / "none")


@pytest.fixture(scope="session")
def configured_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedVllm]:
    """In dev mode, with the logging configuration of `dsobs k8s inject`; test_vllm_contract.py kills it at its end."""
    folder = tmp_path_factory.mktemp("configured-vllm")
    (folder / "engine_log.py").write_text(sidecar.log_code())
    config = sidecar.logging_config(None, ())
    config = config.replace(sidecar.LOGGING_PATH, str(folder)).replace(sidecar.LOG_FILE, str(folder / "vllm.log"))
    (folder / "logging.json").write_text(config)
    environment = {"VLLM_SERVER_DEV_MODE": "1", sidecar.LOGGING_VARIABLE: str(folder / "logging.json")}
    with VllmProcess(*SHARED_FLAGS, environment=environment) as process:
        yield SharedVllm(process, process.first_lines(), folder / "vllm.log")


@pytest.fixture(scope="session")
def scenes(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Scenes]:
    """The run's scenes, being played."""
    with Scenes(cluster, plays_of(request.session.items)) as scenes:
        yield scenes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Scenes come before all others."""
    items.sort(key=lambda item: play_of(item) is None)
