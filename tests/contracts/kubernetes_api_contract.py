"""What a sidecar may take for granted of an API server: the stand-in keeps it, and so does the real one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest

from dsobs.runtimes.kubernetes.api import CREATE_EVENT, FURTHER, NEEDED, READ_POD, Api, ApiError, Right
from dsobs.runtimes.kubernetes.pod import Json, event_line
from dsobs.runtimes.kubernetes.replacing import tell
from tests.contracts.runtime_contract import until

DEADLINE = 30.0


class Scene(Protocol):
    """A server with one pod, which has a container `engine` that said `ready`, and accounts with different rights."""

    async def api(self, account: str, *, pod: str | None = None) -> Api:
        """As `full` (all that a sidecar looks at), `act` (that, Leases, evictions and Events), `get` (only
        to get pods), `none` or `forged` (a token of nobody); `pod`: another pod's name."""
        ...

    async def annotate(self, value: str) -> None:
        """Changes the annotation `test` of the pod."""
        ...

    async def delete(self) -> None:
        """Deletes the pod, at once."""
        ...

    async def protect(self) -> None:
        """A disruption budget that allows no eviction of the pod."""
        ...

    async def forget_versions(self) -> None:
        """The server has no memory of version 1 any more."""
        ...

    async def away(self) -> None:
        """Nobody listens at the server's address any more, until the end of the test."""
        ...


async def next_of(changes: AsyncIterator[tuple[str, Json]], *kinds: str) -> Json:
    """The next event of one of these types."""
    async with asyncio.timeout(DEADLINE):
        async for kind, pod in changes:
            if kind in kinds:
                return pod
    raise AssertionError(f"the watch ended before {kinds}")


def annotation(pod: Json) -> Any:
    return (pod["metadata"].get("annotations") or {}).get("test")


class KubernetesApiContract:
    """Derive, and give the fixture `scene`."""

    async def test_pod_is_given_as_it_is(self, scene: Scene) -> None:
        api = await scene.api("full")
        pod = await api.pod()
        assert pod["metadata"]["name"] == api.identity.name
        assert pod["metadata"]["uid"]
        assert "engine" in [c["name"] for c in pod["spec"]["containers"]]

    async def test_errors_have_the_status_and_the_servers_words(self, scene: Scene) -> None:
        for account, status, words in (("none", 403, "cannot get resource"), ("forged", 401, "Unauthorized")):
            with pytest.raises(ApiError, match=words) as caught:
                await (await scene.api(account)).pod()
            assert caught.value.status == status
        with pytest.raises(ApiError, match="not found") as caught:
            await (await scene.api("full", pod="nobody")).pod()
        assert caught.value.status == 404

    async def test_rights_are_told_one_by_one(self, scene: Scene) -> None:
        full, only, none = [await scene.api(account) for account in ("full", "get", "none")]
        for right in (*NEEDED, *FURTHER):
            assert await full.allowed(right), right
            assert await only.allowed(right) is (right is READ_POD), right
            assert not await none.allowed(right), right
        assert not await full.allowed(Right("create", "pods/eviction"))

    async def test_watch_goes_on_from_a_list_and_tells_of_changes_and_the_pods_end(self, scene: Scene) -> None:
        api = await scene.api("full")
        before, version = await api.listed()
        assert before is not None
        await scene.annotate("one")
        changes = api.watch(version)
        after = before
        while annotation(after) != "one":
            after = await next_of(changes, "MODIFIED")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]
        await scene.delete()
        gone = await next_of(changes, "DELETED")
        assert gone["metadata"]["uid"] == before["metadata"]["uid"]

    async def test_watch_without_the_right_is_refused(self, scene: Scene) -> None:
        api = await scene.api("get")
        with pytest.raises(ApiError) as caught:
            await api.listed()
        assert caught.value.status == 403
        with pytest.raises(ApiError) as caught:
            await next_of(api.watch("1"), "ADDED")
        assert caught.value.status == 403

    async def test_list_and_watch_of_a_pod_that_is_not_there_are_silent(self, scene: Scene) -> None:
        api = await scene.api("full", pod="nobody")
        found, version = await api.listed()
        assert found is None
        await scene.annotate("one")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await next_of(api.watch(version), "ADDED", "MODIFIED")

    async def test_watch_from_a_version_that_is_too_old_is_refused_as_gone(self, scene: Scene) -> None:
        api = await scene.api("full")
        await scene.forget_versions()
        with pytest.raises(ApiError) as caught:
            await next_of(api.watch("1"), "ADDED", "MODIFIED")
        assert caught.value.status == 410

    async def test_log_tail_gives_the_last_lines(self, scene: Scene) -> None:
        api = await scene.api("full")
        # A container without a probe is ready before it has said a word.
        await until(lambda: api.log_tail("engine", 1), lambda lines: lines == ["ready"], DEADLINE)
        with pytest.raises(ApiError) as caught:
            await (await scene.api("get")).log_tail("engine", 1)
        assert caught.value.status == 403

    async def test_server_that_is_away_is_an_error_of_the_connection(self, scene: Scene) -> None:
        api = await scene.api("full")
        await scene.away()
        with pytest.raises(OSError, match=r"."):
            await api.pod()
        with pytest.raises(OSError, match=r"."):
            await next_of(api.watch("1"), "ADDED")

    async def test_lease_is_created_once_and_replaced_by_who_has_read_it_last(self, scene: Scene) -> None:
        api = await scene.api("act")
        assert await api.lease("dsobs-pod-one") is None
        lease = {"metadata": {"name": "dsobs-pod-one"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15}}
        first = await api.write_lease(lease)
        with pytest.raises(ApiError) as caught:
            await api.write_lease(lease)
        assert caught.value.status == 409
        moment = "2026-11-23T10:00:00.000000Z"
        second = await api.write_lease({**first, "spec": {**first["spec"], "holderIdentity": "", "renewTime": moment}})
        assert second["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
        with pytest.raises(ApiError) as caught:
            await api.write_lease(first)
        assert caught.value.status == 409
        found = await api.lease("dsobs-pod-one")
        assert found is not None
        assert (found["spec"].get("holderIdentity"), found["spec"]["renewTime"]) == ("", moment)

    async def test_lease_without_the_right_is_refused(self, scene: Scene) -> None:
        api = await scene.api("full")
        for question in (api.lease("x"), api.write_lease({"metadata": {"name": "x"}, "spec": {}})):
            with pytest.raises(ApiError) as caught:
                await question
            assert caught.value.status == 403

    async def test_all_pods_of_the_namespace_are_listed(self, scene: Scene) -> None:
        api = await scene.api("act")
        assert [pod["metadata"]["name"] for pod in await api.pods()] == [api.identity.name]

    async def test_eviction_respects_budgets_and_takes_no_other_pod_of_the_name(self, scene: Scene) -> None:
        api = await scene.api("act")
        pod = await api.pod()
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        with pytest.raises(ApiError) as caught:
            await api.evict(name, "00000000-0000-0000-0000-000000000000")
        assert caught.value.status == 409
        await scene.protect()
        with pytest.raises(ApiError, match="disruption budget") as caught:
            await api.evict(name, uid)
        assert caught.value.status == 429
        assert not (await api.pod())["metadata"].get("deletionTimestamp")

    async def test_event_that_was_written_is_listed(self, scene: Scene) -> None:
        api = await scene.api("act")
        assert await tell(api, await api.pod(), frozenset({CREATE_EVENT}), "GPUFault", "XID 79", 1_795_000_000.0)
        (line,) = [event_line(event) for event in await api.events() if event["reason"] == "GPUFault"]
        assert line == "2026-11-18T11:06:40Z Warning GPUFault: XID 79"

    async def test_evicted_pod_goes(self, scene: Scene) -> None:
        api = await scene.api("act")
        pod = await api.pod()
        await api.evict(pod["metadata"]["name"], pod["metadata"]["uid"])
        await gone(api)


async def gone(api: Api) -> None:
    """Until the pod is there no more, or on its way."""

    async def there() -> bool:
        try:
            return not (await api.pod())["metadata"].get("deletionTimestamp")
        except ApiError as error:
            if error.status == 404:
                return False
            raise

    await until(there, lambda found: not found, DEADLINE)
