"""The files that the parts of a one-node cluster read: keys, tokens, kubeconfigs, the node's settings."""

import json
from pathlib import Path
from typing import Any

from tests.real.kubernetes.tools import run

NODE = "node"
ADDRESS = "10.77.0.1"
"""Of the node. kubelet refuses one of the loopback network."""
PODS, SERVICES, FIRST_SERVICE = "10.78.0.0/24", "10.96.0.0/24", "10.96.0.1"
USERS = {
    "admin": "admin,admin,1,system:masters",
    "kube-controller-manager": "manager,system:kube-controller-manager,2",
    "kube-scheduler": "scheduler,system:kube-scheduler,3",
    "kubelet": f"kubelet,system:node:{NODE},4,system:nodes",
    "kube-proxy": "proxy,system:kube-proxy,5",
}
"""Part → line of the API server's file of tokens: token, user, id, groups."""


def write(folder: Path, *, cgroup: str, pause: str, crash_loop_seconds: int | None) -> None:
    """All of them, below `folder`. `crash_loop_seconds`: the longest that kubelet waits before it starts a container
    that crashes anew, at least 1 s; without it its own 300 s."""
    _keys(folder)
    (folder / "tokens.csv").write_text("".join(f"{line}\n" for line in USERS.values()))
    for part, line in USERS.items():
        kubeconfig(folder, folder / f"{part}.kubeconfig", f"https://{ADDRESS}:6443", token=line.split(",")[0])
    (folder / "audit.json").write_text(
        json.dumps(
            {
                "apiVersion": "audit.k8s.io/v1",
                "kind": "Policy",
                "omitStages": ["RequestReceived"],
                "rules": [{"level": "Metadata"}],
            }
        )
    )
    (folder / "containerd.toml").write_text(_containerd(folder, pause))
    (folder / "cni").mkdir()
    (folder / "cni/pods.conflist").write_text(json.dumps(_pod_network(folder)))
    (folder / "kubelet.json").write_text(json.dumps(_kubelet(folder, cgroup, crash_loop_seconds)))


def kubeconfig(folder: Path, file: Path, url: str, *, token: str, namespace: str = "default") -> None:
    """Written to `file`, for a bearer token."""
    authority = str(folder / "pki/ca.crt")
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": authority}}],
                "users": [{"name": "user", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user", "namespace": namespace}}],
                "current-context": "test",
            }
        )
    )


def _keys(folder: Path) -> None:
    """An authority, the API server's certificate, the one it shows to kubelet, and the key of service accounts."""
    pki = folder / "pki"
    pki.mkdir()
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("openssl", "genrsa", "-out", str(pki / "accounts.key"), "2048")
    authority = ("-keyout", str(pki / "ca.key"), "-out", str(pki / "ca.crt"))
    run("openssl", "req", "-x509", *key, *authority, "-subj", "/CN=test-ca", "-days", "30")
    names = [f"IP:{ADDRESS}", "IP:127.0.0.1", f"IP:{FIRST_SERVICE}"]
    names += [f"DNS:{name}" for name in ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")]
    for name, subject, extension in (
        ("api", "/CN=kube-apiserver", f"subjectAltName={','.join(names)}"),
        ("kubelet-client", "/O=system:masters/CN=kube-apiserver", "extendedKeyUsage=clientAuth"),
    ):
        signed = ("-CA", str(pki / "ca.crt"), "-CAkey", str(pki / "ca.key"), "-addext", extension, "-days", "30")
        files = ("-keyout", str(pki / f"{name}.key"), "-out", str(pki / f"{name}.crt"))
        run("openssl", "req", "-x509", *key, *files, "-subj", subject, *signed)


def _containerd(folder: Path, pause: str) -> str:
    runc = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc'
    return f"""\
version = 2
root = "{folder}/memory/containerd"
state = "{folder}/memory/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/memory/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # A machine that is itself a container may not lower its processes' scores, and runc then starts nothing.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [{runc}]
    runtime_type = "io.containerd.runc.v2"
    [{runc}.options]
      SystemdCgroup = false
"""


def _pod_network(folder: Path) -> dict[str, Any]:
    """A bridge. Pods have routes to each other, to the node and to services, and none to anything else."""
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods0",
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": PODS}]],
                    "dataDir": f"{folder}/addresses",
                    "routes": [{"dst": f"{ADDRESS}/32"}, {"dst": SERVICES}],
                },
            }
        ],
    }


def _kubelet(folder: Path, cgroup: str, crash_loop_seconds: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": {"x509": {"clientCAFile": f"{folder}/pki/ca.crt"}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "resolvConf": "",
        # A machine's disk that is nearly full is no matter of a test's pods.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "100Mi", "imagefs.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
    }
    if crash_loop_seconds is not None:
        settings["featureGates"] = {"KubeletCrashLoopBackOffMax": True}
        settings["crashLoopBackOff"] = {"maxContainerRestartPeriod": f"{crash_loop_seconds}s"}
    return settings
