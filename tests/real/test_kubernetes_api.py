"""The real API server keeps what the stand-in for it promises, and a sidecar with rights uses it sparingly."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dsobs.runtimes.kubernetes.api import Api
from dsobs.runtimes.kubernetes.identity import Identity
from tests.contracts.kubernetes_api_contract import KubernetesApiContract, Scene, next_of
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.accounts import ACTING, FURTHER, READ, account
from tests.runtimes.kubernetes.accounts import api_of

pytestmark = pytest.mark.real("cluster")


class ClusterScene:
    """A pod of busybox in a namespace of the real cluster."""

    def __init__(self, cluster: Cluster, namespace: Namespace) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self._apis: list[Api] = []
        self._url = cluster.url

    def prepare(self) -> None:
        account(self.namespace, "full", READ, *FURTHER, nodes=True)
        account(self.namespace, "act", READ, *FURTHER, *ACTING)
        account(self.namespace, "get", {**READ, "verbs": ["get"]})
        account(self.namespace, "none")
        container = {
            "name": "engine",
            "image": self.cluster.busybox.name,
            "command": ["sh", "-c", "echo ready; sleep 1000"],
        }
        self.namespace.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "one", "labels": {"app": "one"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
            }
        )
        self.namespace.wait_ready("one")

    async def api(self, account: str, *, pod: str | None = None) -> Api:
        token = "forged" if account == "forged" else await asyncio.to_thread(self.namespace.token, account)
        ca = str(self.cluster.folder / "pki/ca.crt")
        self._apis.append(api_of(self._url, token, Identity(self.namespace.name, pod or "one"), ca=ca))
        return self._apis[-1]

    async def annotate(self, value: str) -> None:
        await asyncio.to_thread(self.namespace.kubectl, "annotate", "--overwrite", "pod", "one", f"test={value}")

    async def delete(self) -> None:
        await asyncio.to_thread(self.namespace.kubectl, "delete", "pod", "one", "--grace-period=0", "--force")

    async def protect(self) -> None:
        budget = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "one"},
            "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "one"}}},
        }
        await asyncio.to_thread(self.namespace.apply, budget)

    async def forget_versions(self) -> None:
        """A server that was just begun knows only what is to come."""

        def restart() -> None:
            with self.cluster.api_server_away():
                pass

        await asyncio.to_thread(restart)

    async def away(self) -> None:
        self._url = "https://127.0.0.1:1"
        for api in self._apis:
            api._client._client._client.base_url = self._url

    async def close(self) -> None:
        for api in self._apis:
            await api.close()


class TestApiServer(KubernetesApiContract):
    @pytest.fixture
    async def scene(self, cluster: Cluster, namespace: Namespace) -> AsyncIterator[Scene]:
        scene = ClusterScene(cluster, namespace)
        await asyncio.to_thread(scene.prepare)
        yield scene
        await scene.close()

    async def test_bookmark_comes_each_minute_after_a_change_and_can_be_read(self, scene: Scene) -> None:
        api = await scene.api("full")
        changes = api.watch((await api.listed())[1])
        await scene.annotate("one")
        await next_of(changes, "MODIFIED")
        # None comes before something has changed after the watch began.
        await scene.annotate("two")
        async with asyncio.timeout(150):
            async for kind, mark in changes:
                if kind == "BOOKMARK":
                    assert mark["metadata"]["resourceVersion"]
                    return
