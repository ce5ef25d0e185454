"""Manifests of Kubernetes: finds a vLLM workload in them and puts the sidecar beside it, as `dsobs k8s inject` does.

Everything here is a function of texts: nothing asks a cluster. A manifest is edited as text, at the places that YAML's
parser gives, so that whatever is not touched stays as it is, byte by byte.
"""

from dsobs.manifests.inject import Outcome, inject, remove
from dsobs.manifests.options import Options
from dsobs.manifests.problem import Finding

__all__ = ["Finding", "Options", "Outcome", "inject", "remove"]
