"""An API server in memory: one namespace, what a sidecar asks of it, and faults on demand.

It passes the contract that the real one passes (tests/contracts/kubernetes_api_contract.py).
"""

import asyncio
import contextlib
import copy
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

NAMESPACE = "serving"
POD = "vllm-7d9f8c6b5-x2x4q"
ENGINE_STARTED = "2026-11-23T10:00:05Z"


def pod_json(**status: Any) -> dict[str, Any]:
    """A pod as the API server gives it: an engine that runs, and the sidecar; `status` is the engine's container's."""
    engine = {
        "name": "engine",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "containerID": "containerd://aaaa",
        "state": {"running": {"startedAt": ENGINE_STARTED}},
        "lastState": {},
        **status,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": POD,
            "namespace": NAMESPACE,
            "uid": "11111111-2222-3333-4444-555555555555",
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-23T10:00:00Z",
            "labels": {"app": "vllm", "pod-template-hash": "7d9f8c6b5"},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": "vllm-7d9f8c6b5",
                    "uid": "66666666-2222-3333-4444-555555555555",
                    "controller": True,
                }
            ],
        },
        "spec": {
            "restartPolicy": "Always",
            "nodeName": "node-1",
            "initContainers": [{"name": "dsobs", "image": "dsobs", "restartPolicy": "Always"}],
            "containers": [
                {
                    "name": "engine",
                    "image": "vllm",
                    "ports": [{"containerPort": 8000}],
                    "livenessProbe": {"exec": {"command": ["sh", "-c", "... /run/dsobs/restart 60"]}},
                }
            ],
        },
        "status": {
            "phase": "Running",
            "startTime": "2026-11-23T10:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [engine],
            "initContainerStatuses": [{"name": "dsobs", "ready": True, "started": True, "restartCount": 0}],
        },
    }


ALL_RIGHTS = frozenset(
    {
        ("get", "pods"),
        ("list", "pods"),
        ("watch", "pods"),
        ("list", "events"),
        ("get", "pods/log"),
        ("get", "deployments"),
        ("get", "statefulsets"),
        ("get", "nodes"),
    }
)
ACTING_RIGHTS = ALL_RIGHTS | {
    ("get", "leases"),
    ("create", "leases"),
    ("update", "leases"),
    ("create", "pods/eviction"),
    ("create", "events"),
}


class StandIn:
    """Serve it, then change what it holds."""

    def __init__(self) -> None:
        self.pod: dict[str, Any] | None = pod_json()
        self.others: dict[tuple[str, str], dict[str, Any]] = {}
        """(plural, name) → object."""
        self.further: dict[str, dict[str, Any]] = {}
        """Pods beside `pod`, by name."""
        self.leases: dict[str, dict[str, Any]] = {}
        self.budget: str | None = None
        """What the disruption budget says to an eviction, if it does not allow one."""
        self.events: list[dict[str, Any]] = []
        self.log = "ready\n"
        self.tokens: dict[str, frozenset[tuple[str, str]]] = {"all": ALL_RIGHTS}
        """Token → what it may."""
        self.asked: list[str] = []
        """Requests, as `verb path`."""
        self.silent = asyncio.Event()
        """Set: it accepts and does not answer."""
        self.begun_at: list[float] = []
        """When each watch began, monotonic."""
        self.oldest = 0
        """A watch from a version before this is told 410."""
        self._history: list[dict[str, Any]] = []
        self.ends_at_once = False
        """Watches end as soon as they have begun."""
        self._version = 1
        self._watches: dict[asyncio.Queue[dict[str, Any] | None], str] = {}
        """Each with the pod's name."""
        self.url = ""

    def change(self, pod: dict[str, Any] | None) -> None:
        """Another state of the pod; None: it is deleted."""
        before, self.pod = self.pod, copy.deepcopy(pod)
        self._version += 1
        kind = "DELETED" if pod is None else "MODIFIED"
        told = copy.deepcopy(pod if pod is not None else before)
        assert told is not None
        told["metadata"]["resourceVersion"] = str(self._version)
        if self.pod is not None:
            self.pod["metadata"]["resourceVersion"] = str(self._version)
        event = {"type": kind, "object": told}
        self._history.append(event)
        for queue, name in self._watches.items():
            if name == told["metadata"]["name"]:
                queue.put_nowait(event)

    def forget(self) -> None:
        """Only what is to come can be watched."""
        self._version += 1
        self.oldest = self._version

    def bookmark(self) -> None:
        """As the real one sends each minute: an object with nothing but a version."""
        self._version += 1
        mark = {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {"resourceVersion": str(self._version), "creationTimestamp": None},
            "spec": {"containers": None},
            "status": {},
        }
        for queue in self._watches:
            queue.put_nowait({"type": "BOOKMARK", "object": mark})

    def cut_off(self) -> None:
        """Ends all watches, as the server does from time to time."""
        for queue in self._watches:
            queue.put_nowait(None)

    @property
    def begun(self) -> int:
        """Watches so far."""
        return len(self.begun_at)

    @property
    def watches(self) -> int:
        """How many are open."""
        return len(self._watches)

    def _may(self, request: web.Request, verb: str, resource: str) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            raise _error(401, "Unauthorized", "Unauthorized")
        if (verb, resource) not in self.tokens[token]:
            raise _error(
                403, "Forbidden", f'{resource} is forbidden: User "sidecar" cannot {verb} resource "{resource}"'
            )

    def _all(self) -> list[dict[str, Any]]:
        return [*([self.pod] if self.pod is not None else []), *self.further.values()]

    async def _pods(self, request: web.Request) -> web.StreamResponse:
        if not request.query.get("watch"):
            return self._list(request)
        self._may(request, "watch", "pods")
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        version = int(request.query["resourceVersion"])
        name = request.query["fieldSelector"].removeprefix("metadata.name=")
        await answer.prepare(request)
        self.begun_at.append(time.monotonic())
        if version < self.oldest:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await answer.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return answer
        for past in self._history:
            meta = past["object"]["metadata"]
            if meta["name"] == name and int(meta["resourceVersion"]) > version:
                queue.put_nowait(past)
        if self.ends_at_once:
            queue.put_nowait(None)
        self._watches[queue] = name
        try:
            while (event := await queue.get()) is not None:
                if event["type"] != "BOOKMARK" or request.query.get("allowWatchBookmarks") == "true":
                    await answer.write(json.dumps(event).encode() + b"\n")
        finally:
            del self._watches[queue]
        return answer

    def _list(self, request: web.Request) -> web.Response:
        self._may(request, "list", "pods")
        name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        pods = [pod for pod in self._all() if name in ("", pod["metadata"]["name"])]
        first, limit = int(request.query.get("continue", 0)), int(request.query.get("limit", 500))
        meta = {"resourceVersion": str(self._version)}
        if first + limit < len(pods):
            meta["continue"] = str(first + limit)
        return web.json_response({"kind": "PodList", "metadata": meta, "items": pods[first : first + limit]})

    async def _pod(self, request: web.Request) -> web.Response:
        self._may(request, "get", "pods")
        if self.pod is None or self.pod["metadata"]["name"] != request.match_info["name"]:
            raise _error(404, "NotFound", f'pods "{request.match_info["name"]}" not found')
        return web.json_response(self.pod)

    async def _pod_log(self, request: web.Request) -> web.Response:
        self._may(request, "get", "pods/log")
        lines = self.log.splitlines(keepends=True)[-int(request.query["tailLines"]) :]
        return web.Response(text="".join(lines))

    async def _events(self, request: web.Request) -> web.Response:
        self._may(request, "list", "events")
        return web.json_response({"kind": "EventList", "metadata": {}, "items": self.events})

    async def _create_event(self, request: web.Request) -> web.Response:
        self._may(request, "create", "events")
        event = await request.json()
        self.events.append(event)
        return web.json_response(event, status=201)

    def _remove(self, name: str, uid: str | None) -> None:
        found = next((pod for pod in self._all() if pod["metadata"]["name"] == name), None)
        if found is None:
            raise _error(404, "NotFound", f'pods "{name}" not found')
        if uid is not None and uid != found["metadata"]["uid"]:
            raise _error(409, "Conflict", f"the UID in the precondition ({uid}) does not match the UID in record")
        if found is self.pod:
            self.change({**found, "metadata": {**found["metadata"], "deletionTimestamp": "2026-11-23T12:00:00Z"}})
        else:
            del self.further[name]

    async def _evict(self, request: web.Request) -> web.Response:
        self._may(request, "create", "pods/eviction")
        if self.budget is not None:
            raise _error(429, "TooManyRequests", self.budget)
        wanted = (await request.json()).get("deleteOptions") or {}
        self._remove(request.match_info["name"], (wanted.get("preconditions") or {}).get("uid"))
        return web.json_response({"kind": "Status", "status": "Success", "code": 201}, status=201)

    async def _lease(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name")
        verb = {"GET": "get", "POST": "create", "PUT": "update"}[request.method]
        self._may(request, verb, "leases")
        if verb == "get":
            if name not in self.leases:
                raise _error(404, "NotFound", f'leases.coordination.k8s.io "{name}" not found')
            return web.json_response(self.leases[name])
        told = await request.json()
        name = told["metadata"]["name"]
        before = self.leases.get(name)
        if verb == "create" and before is not None:
            raise _error(409, "AlreadyExists", f'leases.coordination.k8s.io "{name}" already exists')
        if before is not None and told["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]:
            raise _error(409, "Conflict", f'Operation cannot be fulfilled on leases "{name}": it has been modified')
        self._version += 1
        told["metadata"] |= {"namespace": NAMESPACE, "uid": f"uid-{name}", "resourceVersion": str(self._version)}
        self.leases[name] = told
        return web.json_response(told, status=201 if verb == "create" else 200)

    async def _other(self, request: web.Request) -> web.Response:
        plural, name = request.match_info["plural"], request.match_info["name"]
        self._may(request, "get", plural)
        found = self.others.get((plural, name))
        if found is None:
            raise _error(404, "NotFound", f'{plural} "{name}" not found')
        return web.json_response(found)

    async def _review(self, request: web.Request) -> web.Response:
        review = await request.json()
        asked = review["spec"]["resourceAttributes"]
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            raise _error(401, "Unauthorized", "Unauthorized")
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        allowed = (asked["verb"], resource) in self.tokens[token]
        return web.json_response({**review, "status": {"allowed": allowed}}, status=201)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Its address while the context lasts."""

        @web.middleware
        async def note(request: web.Request, handler: Any) -> web.StreamResponse:
            verb = "WATCH" if request.query.get("watch") else request.method
            self.asked.append(f"{verb} {request.path}")
            if self.silent.is_set():
                await asyncio.sleep(3600)
            answer: web.StreamResponse = await handler(request)
            return answer

        app = web.Application(middlewares=[note])
        base = f"/api/v1/namespaces/{NAMESPACE}"
        app.router.add_get(f"{base}/pods", self._pods)
        app.router.add_get(f"{base}/pods/{{name}}", self._pod)
        app.router.add_get(f"{base}/pods/{{name}}/log", self._pod_log)
        app.router.add_post(f"{base}/pods/{{name}}/eviction", self._evict)
        app.router.add_get(f"{base}/events", self._events)
        app.router.add_post(f"{base}/events", self._create_event)
        leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
        app.router.add_post(leases, self._lease)
        for add in (app.router.add_get, app.router.add_put):
            add(f"{leases}/{{name}}", self._lease)
        app.router.add_get(f"/apis/apps/v1/namespaces/{NAMESPACE}/{{plural}}/{{name}}", self._other)
        app.router.add_get("/api/v1/{plural}/{name}", self._other)
        app.router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self._review)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self.url
        finally:
            self.cut_off()
            await runner.cleanup()


def _error(code: int, reason: str, message: str) -> web.HTTPException:
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    kinds = {
        401: web.HTTPUnauthorized,
        403: web.HTTPForbidden,
        404: web.HTTPNotFound,
        409: web.HTTPConflict,
        429: web.HTTPTooManyRequests,
    }
    error = kinds[code](text=json.dumps(body))
    # The real one names no charset.
    error.headers["Content-Type"] = "application/json"
    return error
