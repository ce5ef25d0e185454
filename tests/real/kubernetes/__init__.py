"""A real single-node Kubernetes, built by tests/real/kubernetes.sh: `Cluster`, and in it `Namespace`.

The fixtures `cluster` (one for the whole run) and `namespace` (one for each test) are in tests/real/conftest.py.
"""

from tests.real.kubernetes.cluster import Cluster
from tests.real.kubernetes.namespace import Namespace
from tests.real.kubernetes.tools import KubernetesUnavailable

__all__ = ["Cluster", "KubernetesUnavailable", "Namespace"]
