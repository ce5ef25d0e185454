"""Service accounts with Roles."""

from typing import Any

from tests.real.kubernetes.namespace import Namespace

READ = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
FURTHER = (
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": ["apps"], "resources": ["deployments", "statefulsets"], "verbs": ["get"]},
)
ACTING = (
    {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
)
NODES = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}


def account(namespace: Namespace, name: str, *rules: dict[str, Any], nodes: bool = False) -> None:
    """A service account with a Role of these rules; `nodes`: and a ClusterRole to look at nodes."""
    group = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace.name}
    namespace.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
    if rules:
        bound = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        namespace.apply({**group, "kind": "Role", "rules": list(rules)})
        namespace.apply({**group, "kind": "RoleBinding", "roleRef": bound, "subjects": [subject]})
    if nodes:
        full = f"{namespace.name}-{name}"
        wide = {**group, "metadata": {"name": full}}
        bound = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": full}
        namespace.apply({**wide, "kind": "ClusterRole", "rules": [NODES]})
        namespace.apply({**wide, "kind": "ClusterRoleBinding", "roleRef": bound, "subjects": [subject]})
