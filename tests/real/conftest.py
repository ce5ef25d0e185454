"""What several modules share: a Kubernetes cluster takes its time to start."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real import image
from tests.real.docker import Dockerd
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.images import Image
from tests.real.kubernetes.scenes import Scenes, play_of, plays_of

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
def scenes(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Scenes]:
    """The run's scenes, being played."""
    with Scenes(cluster, plays_of(request.session.items)) as scenes:
        yield scenes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Scenes come before all others."""
    items.sort(key=lambda item: play_of(item) is None)
