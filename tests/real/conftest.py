"""What several modules share: a Kubernetes cluster takes its time to start."""

from collections.abc import Iterator

import pytest

from tests.real.kubernetes import Cluster, Namespace


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
