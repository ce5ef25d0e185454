"""NetworkPolicies that are heeded: kube-network-policies judges the first packet of each connection to some pods.

It asks the API server for policies, pods and namespaces. Its own nftables rules need a kernel with NFT_QUEUE, so the
packets are given to it by iptables here, which every kernel with NFQUEUE has.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.real.kubernetes.cluster import Cluster
from tests.real.kubernetes.configuration import ADDRESS
from tests.real.kubernetes.tools import INSTALL_SECONDS, run

SCRIPT = Path(__file__).parents[1] / "network-policies.sh"
QUEUE = "98"
OUTSIDER = "10.78.0.250"
"""In the pods' network, so that pods can answer, and of no pod: what is outside the cluster, to a policy."""
_RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: policies}
rules:
  - {apiGroups: [""], resources: [pods, namespaces], verbs: [list, watch]}
  - {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: policies}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: policies}
subjects: [{kind: ServiceAccount, name: policies, namespace: kube-system}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: policies, namespace: kube-system}
"""


@contextlib.contextmanager
def heeded(cluster: Cluster, pod: str) -> Iterator[None]:
    """Policies hold for connections to this address of a pod; other pods are left alone."""
    program = run("bash", str(SCRIPT), seconds=INSTALL_SECONDS).strip().splitlines()[-1]
    host = cluster.host
    assert host is not None
    cluster.kubectl("apply", "--filename=-", stdin=_RIGHTS)
    account = "/run/secrets/kubernetes.io/serviceaccount"
    host.run("mkdir", "-p", account)
    host.run("cp", f"{cluster.folder}/pki/ca.crt", account)
    token = cluster.kubectl("--namespace=kube-system", "create", "token", "policies").strip()
    host.run("sh", "-c", f"cat > {account}/token", stdin=token)
    words = (f"--nfqueue-id={QUEUE}", "--hostname-override=node", "--metrics-bind-address=127.0.0.1:9080")
    server = (f"KUBERNETES_SERVICE_HOST={ADDRESS}", "KUBERNETES_SERVICE_PORT=6443")
    rule = ("FORWARD", "-d", pod, "-m", "conntrack", "--ctstate", "NEW", "-j", "NFQUEUE", "--queue-num", QUEUE)
    host.start("policies", "env", *server, program, *words)
    try:
        # Behind the translation of services' addresses, as a plugin's own rules are.
        host.run("iptables", "-w", "-t", "mangle", "-A", *rule)
        try:
            yield
        finally:
            host.run("iptables", "-w", "-t", "mangle", "-D", *rule)
    finally:
        host.kill("policies")
        cluster.kubectl("delete", "--filename=-", stdin=_RIGHTS)


@contextlib.contextmanager
def outsider(cluster: Cluster) -> Iterator[tuple[str, ...]]:
    """Words before a command that make it run where no pod is, beside the pods' bridge."""
    host = cluster.host
    assert host is not None
    for line in (
        "netns add outside",
        "link add outside0 type veth peer name eth0 netns outside",
        "link set outside0 master pods0 up",
        f"-n outside address add {OUTSIDER}/24 dev eth0",
        "-n outside link set eth0 up",
    ):
        host.run("ip", *line.split())
    try:
        yield host.words("ip", "netns", "exec", "outside")
    finally:
        host.run("ip", "netns", "delete", "outside")


def answers(words: tuple[str, ...], address: str, port: int) -> bool:
    """Whether something at that port speaks HTTP to who runs these words; False for what is not let through."""
    # Who has said all closes its side, and a server may then say nothing more: so this waits for the answer.
    ask = f"{{ printf 'GET /health HTTP/1.0\\r\\n\\r\\n'; sleep 1; }} | busybox nc -w 2 {address} {port} 2>&1 || true"
    done = subprocess.run([*words, "sh", "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    return "HTTP/1." in done.stdout
