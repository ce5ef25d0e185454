"""What a sidecar asks of the API server: its own pod, watched, and before it acts what stands above and below it.

Only this module talks to the server. lightkube is imported when it is used: it comes with the extra
`dsobs[kubernetes]`.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dsobs.model.observation import Unknown
from dsobs.runtimes.kubernetes.identity import Identity
from dsobs.runtimes.kubernetes.pod import Json
from dsobs.telemetry import KUBERNETES_REQUESTS

if TYPE_CHECKING:
    from lightkube import AsyncClient

log = logging.getLogger(__name__)

QUESTION_SECONDS = 5.0
"""Deadline of one question."""
WATCH_SECONDS = (300, 600)
"""The server ends a watch after a time from this span, and it is begun anew where it stopped."""
WATCH_GAP_SECONDS = 10.0
"""Between the beginnings of two watches, at least, however they end."""
SILENT_SECONDS = 240.0
"""A watch on which nothing comes for this long may be dead, and is begun anew from a list. The server sends a bookmark
each minute, but none while no pod of the whole cluster changes."""
BACK_OFF_SECONDS = (1.0, 60.0)
"""First and longest wait after a failure."""
POLL_SECONDS = 60.0
"""Between two looks at the pod where it may be read and not watched."""
REVIEW_SECONDS = (10.0, 600.0)
"""First and longest wait until it is asked again whether a missing right has been granted: of a Role that is applied
together with the pod the API server knows a moment later."""
EVENTS = 20
_COORDINATION = "coordination.k8s.io"


@dataclass(frozen=True, slots=True)
class Right:
    """One right, and what for."""

    verb: str
    resource: str
    group: str = ""
    purpose: str = ""
    namespaced: bool = True


READ_POD = Right("get", "pods", purpose="to see the engine's container, its restarts and the pod's end")
LIST_PODS = Right("list", "pods", purpose="to learn of them at once instead of once a minute")
WATCH_PODS = Right("watch", "pods", purpose=LIST_PODS.purpose)
NEEDED = (READ_POD, LIST_PODS, WATCH_PODS)
FURTHER = (
    Right("list", "events", purpose="events of the pod in an incident's evidence"),
    Right("get", "pods/log", purpose="the engine's last lines in an incident's evidence"),
    Right("get", "deployments", "apps", "no restart while a roll-out is under way"),
    Right("get", "statefulsets", "apps", "no restart while a roll-out is under way"),
    Right("get", "nodes", purpose="no restart while the node is drained", namespaced=False),
)
"""What is used where it is granted, and not missed where it is not."""
EVICT = Right("create", "pods/eviction", purpose="to replace a pod that no restart helps, and all pods of one engine")
CREATE_EVENT = Right("create", "events", purpose="to tell of faults of the node")
ACTING = (EVICT, CREATE_EVENT)
"""The same for what changes something."""


def rule(rights: Iterable[Right]) -> str:
    """The rules of a Role that grant these, as YAML on one line each."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for right in rights:
        grouped.setdefault((right.group, right.resource), []).append(right.verb)
    return "; ".join(
        f'{{apiGroups: ["{group}"], resources: ["{resource}"], verbs: [{", ".join(verbs)}]}}'
        for (group, resource), verbs in grouped.items()
    )


class ApiError(Exception):
    """The server's answer was an error; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The API server, for one pod. Every question has a deadline; ApiError, OSError or TimeoutError if it fails."""

    def __init__(self, client: "AsyncClient", identity: Identity) -> None:
        self._client = client
        self.identity = identity

    async def pod(self) -> Json:
        """The pod as it is now."""
        return await self._get("Pod", "", self.identity.name)

    async def workload(self, kind: str, name: str) -> Json:
        """A Deployment or StatefulSet of this namespace."""
        return await self._get(kind, "apps", name)

    async def node(self, name: str) -> Json:
        """One node."""
        return await self._get("Node", "", name, namespaced=False)

    async def pods(self) -> list[Json]:
        """All pods of the namespace, read by the hundred."""

        async def listed() -> list[Json]:
            found = self._client.list(resource("", "Pod"), namespace=self.identity.namespace, chunk_size=100)
            return [dict(pod) async for pod in found]

        pods: list[Json] = await self._asked("list", listed())
        return pods

    async def lease(self, name: str) -> Json | None:
        """A Lease of this namespace; None if there is none."""
        try:
            return await self._get("Lease", _COORDINATION, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def write_lease(self, lease: Json) -> Json:
        """Creates it, or replaces the one of its resourceVersion; ApiError 409 where somebody was faster."""
        kind = resource(_COORDINATION, "Lease")
        there = "resourceVersion" in lease["metadata"]
        write: Any = self._client.replace if there else self._client.create
        return dict(
            await self._asked(
                "replace" if there else "create", write(kind(dict(lease)), namespace=self.identity.namespace)
            )
        )

    async def scale(self, kind: str, name: str) -> Json:
        """The Scale of a Deployment or StatefulSet: the number of replicas alone."""
        get = cast("Any", self._client.get)
        return dict(await self._asked("get", get(subresource_scale(kind), name, namespace=self.identity.namespace)))

    async def set_scale(self, kind: str, name: str, scale: Json) -> None:
        """Replaces the Scale of its resourceVersion; ApiError 409 where somebody was faster."""
        replace = cast("Any", self._client.replace)
        made = subresource_scale(kind)(dict(scale))
        await self._asked("replace", replace(made, name, namespace=self.identity.namespace))

    async def autoscalers(self) -> list[Json]:
        """The HorizontalPodAutoscalers of the namespace."""
        return await self._listed(resource("autoscaling", "HorizontalPodAutoscaler"))

    async def scaled_objects(self) -> list[Json]:
        """KEDA's ScaledObjects of the namespace; none where KEDA is not installed."""
        try:
            return await self._listed(resource("keda.sh", "ScaledObject", version="v1alpha1"))
        except ApiError as error:
            if error.status == 404:
                return []
            raise

    async def write_autoscaler(self, kind: str, autoscaler: Json) -> None:
        """Replaces a HorizontalPodAutoscaler or ScaledObject of its resourceVersion; ApiError 409 as above."""
        keda = kind == "ScaledObject"
        made = resource("keda.sh", kind, version="v1alpha1") if keda else resource("autoscaling", kind)
        replace: Any = self._client.replace
        await self._asked("replace", replace(made(dict(autoscaler)), namespace=self.identity.namespace))

    async def _listed(self, kind: Any) -> list[Json]:
        async def listed() -> list[Json]:
            return [dict(each) async for each in self._client.list(kind, namespace=self.identity.namespace)]

        found: list[Json] = await self._asked("list", listed())
        return [{"kind": kind._api_info.resource.kind, **each} for each in found]  # noqa: SLF001 - lightkube's own way

    async def evict(self, name: str, uid: str) -> None:
        """Evicts a pod as far as disruption budgets allow it; ApiError 429 where one does not. A pod of that name that
        is another one by now is left alone (409)."""
        made = eviction()({"metadata": {"name": name}, "deleteOptions": {"preconditions": {"uid": uid}}})
        create = cast("Any", self._client.create)
        await self._asked("evict", create(made, name, namespace=self.identity.namespace))

    async def create_event(self, event: Json) -> None:
        """An Event of this namespace."""
        made = resource("", "Event")(dict(event))
        create = cast("Any", self._client.create)
        await self._asked("create", create(made, namespace=self.identity.namespace))

    async def events(self) -> list[Json]:
        """The pod's last events, oldest first."""
        fields: Any = {"involvedObject.name": self.identity.name, "involvedObject.kind": "Pod"}

        async def listed() -> list[Json]:
            found = self._client.list(resource("", "Event"), namespace=self.identity.namespace, fields=fields)
            return [dict(event) async for event in found]

        events: list[Json] = await self._asked("list", listed())
        events.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
        return events[-EVENTS:]

    async def log_tail(self, container: str, lines: int) -> list[str]:
        """The container's last lines."""

        async def read() -> list[str]:
            found = self._client.log(
                self.identity.name, namespace=self.identity.namespace, container=container, tail_lines=lines
            )
            return [line.rstrip("\n") async for line in found]

        found: list[str] = await self._asked("log", read())
        return found

    async def allowed(self, right: Right) -> bool:
        """Whether this service account has the right, by a SelfSubjectAccessReview."""
        kind = resource("authorization.k8s.io", "SelfSubjectAccessReview", namespaced=False)
        name, _, part = right.resource.partition("/")
        attributes = {"verb": right.verb, "group": right.group, "resource": name, "subresource": part}
        if right.namespaced:
            attributes["namespace"] = self.identity.namespace
        review = await self._asked("review", self._client.create(kind({"spec": {"resourceAttributes": attributes}})))
        return bool((review.get("status") or {}).get("allowed"))

    async def listed(self) -> tuple[Json | None, str]:
        """The pod, None if there is none, and the version from which a watch goes on."""

        async def look() -> tuple[Json | None, str]:
            found = self._client.list(
                resource("", "Pod"), namespace=self.identity.namespace, fields={"metadata.name": self.identity.name}
            )
            pods = [dict(pod) async for pod in found]
            return (pods[0] if pods else None), found.resourceVersion

        answer: tuple[Json | None, str] = await self._asked("list", look())
        return answer

    async def watch(self, version: str) -> AsyncIterator[tuple[str, Json]]:
        """(type, pod) of each change after `version`; BOOKMARK for a sign of life. Goes on until it fails, or is silent
        for so long that it may be dead.

        It can't begin without a version: 1.34 above an etcd before 3.5 refuses that where bookmarks are asked for, and
        the pod's own version is too old for a server as soon as other pods have changed often enough.
        """
        changes: Any = self._client.watch(
            resource("", "Pod"),
            namespace=self.identity.namespace,
            fields={"metadata.name": self.identity.name},
            resource_version=version,
            server_timeout=random.randint(*WATCH_SECONDS),
        )
        async with contextlib.aclosing(changes):
            while True:
                silence = asyncio.timeout(SILENT_SECONDS)
                try:
                    async with silence:
                        kind, pod = await anext(changes)
                except StopAsyncIteration:
                    return
                except Exception as error:
                    if silence.expired():
                        return
                    raise _plain(error) from error
                yield kind, dict(pod)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _get(self, kind: str, group: str, name: str, *, namespaced: bool = True) -> Json:
        where = {"namespace": self.identity.namespace} if namespaced else {}
        asked = self._client.get(resource(group, kind, namespaced=namespaced), name, **where)
        return dict(await self._asked("get", asked))

    async def _asked(self, what: str, question: Any) -> Any:
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                answer = await question
        except Exception as error:
            plain = _plain(error)
            KUBERNETES_REQUESTS.labels(what, str(plain.status) if isinstance(plain, ApiError) else "failed").inc()
            raise plain from error
        KUBERNETES_REQUESTS.labels(what, "ok").inc()
        return answer


@cache
def resource(group: str, kind: str, *, namespaced: bool = True, version: str = "v1") -> Any:
    """A kind whose objects are JSON as the server gives it: a server of another age may add fields, and
    leaves some out of bookmarks. Not in lightkube's registry, where another class of the kind may be."""
    from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource, create_api_info

    base = GenericNamespacedResource if namespaced else GenericGlobalResource
    return type(kind, (base,), {"_api_info": create_api_info(group, version, kind, f"{kind.lower()}s")})


@cache
def eviction() -> Any:
    """The subresource `pods/eviction` of policy/v1."""
    from lightkube.core.resource import ApiInfo, NamespacedSubResource, ResourceDef
    from lightkube.generic_resource import Generic

    info = ApiInfo(
        resource=ResourceDef("policy", "v1", "Eviction"),
        parent=ResourceDef("", "v1", "Pod"),
        plural="pods",
        verbs=["post"],
        action="eviction",
    )
    return type("Eviction", (NamespacedSubResource, Generic), {"_api_info": info})


@cache
def subresource_scale(kind: str) -> Any:
    """The subresource `scale` (autoscaling/v1) of a Deployment or StatefulSet."""
    from lightkube.core.resource import ApiInfo, NamespacedSubResource, ResourceDef
    from lightkube.generic_resource import Generic

    info = ApiInfo(
        resource=ResourceDef("autoscaling", "v1", "Scale"),
        parent=ResourceDef("apps", "v1", kind),
        plural=f"{kind.lower()}s",
        verbs=["get", "patch", "put"],
        action="scale",
    )
    return type("Scale", (NamespacedSubResource, Generic), {"_api_info": info})


def _plain(error: Exception) -> Exception:
    """The client's exceptions as this module's."""
    import httpx2
    import msgspec

    if isinstance(error, httpx2.HTTPStatusError):
        told = getattr(error, "status", None)
        response: httpx2.Response | None = error.response
        status = getattr(told, "code", None) or (response.status_code if response is not None else 0)
        return ApiError(int(status), str(getattr(told, "message", "") or error)[:500])
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return TimeoutError("no answer in time")
    if isinstance(error, httpx2.HTTPError):
        return ConnectionError(str(error) or type(error).__name__)
    if isinstance(error, msgspec.DecodeError):
        return ConnectionError(f"an answer that can't be read: {error}")
    return error


def open_api(folder: Path, identity: Identity) -> Api | Unknown:
    """The API server by the service account in `folder`; Unknown, with the reason, where there is no way to it."""
    if not (folder / "token").exists():
        return Unknown(f"no service account token in {folder}")
    try:
        from lightkube import KubeConfig
        from lightkube.core.exceptions import ConfigError
    except ImportError:
        return Unknown("the extra dsobs[kubernetes] is not installed")
    try:
        config = KubeConfig.from_service_account(str(folder))
        return Api(_client(config), identity)
    except (ConfigError, KeyError, OSError, ValueError) as error:
        return Unknown(f"the service account in {folder} can't be used: {error}")


def _client(config: Any, *, gap: float = WATCH_GAP_SECONDS) -> "AsyncClient":
    import httpx2
    from lightkube import AsyncClient
    from lightkube.config.client_adapter import verify_cluster

    class Transport(httpx2.AsyncHTTPTransport):
        """lightkube begins a watch that ended anew at once, and asks for no bookmarks."""

        _watched_at = float("-inf")

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            if "watch" in request.url.params:
                await asyncio.sleep(max(self._watched_at + gap - time.monotonic(), 0.0))
                self._watched_at = time.monotonic()
                request.url = request.url.copy_add_param("allowWatchBookmarks", "true")
                KUBERNETES_REQUESTS.labels("watch", "begun").inc()
            return await super().handle_async_request(request)

    single = config.get()
    verify = verify_cluster(single.cluster, single.user, single.abs_file, trust_env=False)
    return AsyncClient(
        config=single, timeout=httpx2.Timeout(QUESTION_SECONDS), trust_env=False, transport=Transport(verify=verify)
    )


class PodWatch:
    """Follows the pod for as long as it runs, whatever happens to the API server."""

    def __init__(self, api: Api, changed: Callable[[], None], *, sleep: Callable[[float], Any] = asyncio.sleep) -> None:
        """`changed` is called when the pod has changed."""
        self._api = api
        self._changed = changed
        self._sleep = sleep
        self.pod: Json | None = None
        """As it was last seen."""
        self.error: str | None = "not asked yet"
        """Why it is not known now; None while it is followed."""
        self.missing: tuple[Right, ...] = ()
        self.granted: frozenset[Right] = frozenset()
        """Of those that are not needed."""
        self._reviewed = False

    async def run(self) -> None:
        """Until it is cancelled."""
        wait, review = BACK_OFF_SECONDS[0], REVIEW_SECONDS[0]
        while True:
            try:
                await self._review()
                if READ_POD in self.missing:
                    self._lose(self._unreadable())
                    await self._sleep(review)
                    review = min(review * 2, REVIEW_SECONDS[1])
                    self._reviewed = False
                    continue
                review = REVIEW_SECONDS[0]
                if self.missing:
                    self.take(await self._api.pod())
                    wait = BACK_OFF_SECONDS[0]
                    await self._sleep(POLL_SECONDS)
                    continue
                found, version = await self._api.listed()
                if found is None:
                    raise ApiError(404, "not found")
                self.take(found)
                async for kind, pod in self._api.watch(version):
                    wait = BACK_OFF_SECONDS[0]
                    if kind == "DELETED":
                        self._lose(f"there is no pod {self._api.identity} any more")
                    elif kind != "BOOKMARK":
                        self.take(pod)
            except ApiError as error:
                # 410: the place where the watch stopped is too long ago; it is begun anew.
                if error.status != 410:
                    self._lose(self._told(error))
            except (OSError, TimeoutError) as error:
                self._lose(f"the API server does not answer: {str(error) or type(error).__name__}")
            except asyncio.CancelledError:
                raise
            except Exception as error:  # The client's mistake; the engine is watched by its page meanwhile.
                log.exception("the pod can't be followed")
                self._lose(f"the pod can't be followed: {type(error).__name__}: {error}")
            await self._sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, BACK_OFF_SECONDS[1])

    def take(self, pod: Json) -> None:
        """The pod as it is now."""
        uid = self._api.identity.uid
        if uid is not None and (pod.get("metadata") or {}).get("uid") != uid:
            self._lose(f"pod {self._api.identity} is another one by now (POD_UID {uid})")
            return
        if self.error is not None:
            log.info("pod %s is followed by the API server", self._api.identity)
        self.pod, self.error = pod, None
        self._changed()

    async def _review(self) -> None:
        if self._reviewed:
            return
        before = self.missing
        self.missing = tuple([right for right in NEEDED if not await self._api.allowed(right)])
        if self.missing and self.missing != before:
            purposes = ", and ".join(dict.fromkeys(right.purpose for right in self.missing))
            log.warning(
                "the service account may not %s in namespace %s, which is needed %s; add to its Role: %s",
                " and ".join(f"{right.verb} {right.resource}" for right in self.missing),
                self._api.identity.namespace,
                purposes,
                rule(self.missing),
            )
        self.granted = frozenset([right for right in (*FURTHER, *ACTING) if await self._api.allowed(right)])
        others = [right for right in (*FURTHER, *ACTING) if right not in self.granted]
        if others and not before:
            log.info(
                "not granted, and done without: %s", "; ".join(f"{r.verb} {r.resource} ({r.purpose})" for r in others)
            )
        self._reviewed = True

    def _told(self, error: ApiError) -> str:
        identity = self._api.identity
        if error.status == 401:
            return f"the API server does not accept the service account's token: {error}"
        if error.status == 403:
            # Taken away since.
            self._reviewed = False
            return self._unreadable()
        if error.status == 404:
            return f"there is no pod {identity}: check POD_NAME and POD_NAMESPACE"
        return f"the API server answers {error.status}: {error}"

    def _unreadable(self) -> str:
        return f"no right to read pod {self._api.identity}; add to the Role: {rule(NEEDED)}"

    def _lose(self, reason: str) -> None:
        if reason != self.error:
            log.warning("%s (dsobs sees the engine by its page meanwhile)", reason)
        self.error = reason
        self._changed()
