"""vLLM's HTTP API, as far as monitoring, probes and load generators use it; shapes seen on vLLM 0.32."""

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from aiohttp import web

from dsobs.simulator.engine import Engine, EngineDeadError, Flight, Parent
from dsobs.simulator.metrics import Page
from dsobs.simulator.options import Options

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CHARACTERS_PER_TOKEN = 4
_CHAT_TEMPLATE_TOKENS = 4
_DEFAULT_MAX_TOKENS = 16
_BODY_LIMIT = 64 * 2**20
_WATCHDOG_SECONDS = 5.0
_WORDS = (
    "the",
    "server",
    "answers",
    "with",
    "a",
    "word",
    "that",
    "means",
    "nothing",
    "at",
    "all",
    "and",
    "then",
    "stops",
)
_NOT_COUNTED = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})


class BadRequest(Exception):
    """The client's mistake, as vLLM words it."""

    def __init__(
        self, message: str, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked completion request."""

    chat: bool
    id: str
    model: str
    prompts: tuple[int, ...]
    """Tokens of each prompt."""
    max_tokens: int
    n: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    stream: bool
    include_usage: bool
    rank: int | None


def count_tokens(text: str) -> int:
    """Tokens of a text: invented, four bytes each."""
    return max(1, -(-len(text.encode()) // _CHARACTERS_PER_TOKEN))


def word(token: int) -> str:
    """The text of an invented token."""
    return " " + _WORDS[token % len(_WORDS)]


def error(message: str, status: int, kind: str, param: str | None = None) -> web.Response:
    """An error as vLLM answers it."""
    return _json({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), status=status, content_type="application/json")


def _log_access(request: web.Request, status: int, reason: str, prefix: str) -> None:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    address = f"{peer[0]}:{peer[1]}" if peer else "-"
    line = f'{prefix}INFO:     {address} - "{request.method} {request.path_qs} HTTP/1.1" {status} {reason}\n'
    sys.stderr.write(line)


class Server:
    """The API of one simulated server, on a started engine."""

    def __init__(self, options: Options, engine: Engine, page: Page, log_prefix: str) -> None:
        self.options = options
        self.engine = engine
        self.page = page
        self.exit_requested = asyncio.Event()
        self._key = sha256(options.api_key.encode()).digest() if options.api_key is not None else None
        self._log_prefix = log_prefix
        self.app = web.Application(middlewares=[self._around], client_max_size=_BODY_LIMIT)
        router = self.app.router
        router.add_get("/health", self._health, allow_head=False)
        router.add_get("/metrics", self._metrics, allow_head=False)
        router.add_get("/version", self._version, allow_head=False)
        router.add_get("/load", self._load, allow_head=False)
        for method in ("GET", "POST"):
            router.add_route(method, "/ping", self._health)
        router.add_get("/v1/models", self._models, allow_head=False)
        router.add_post("/tokenize", self._tokenize)
        if options.task == "generate":
            router.add_post("/v1/completions", self._completions)
            router.add_post("/v1/chat/completions", self._chat)
        else:
            router.add_post("/v1/embeddings", self._embeddings)
        if options.dev_mode:
            router.add_post("/sleep", self._sleep)
            router.add_post("/wake_up", self._wake_up)
            router.add_get("/is_sleeping", self._is_sleeping, allow_head=False)
            router.add_post("/pause", self._pause)
            router.add_post("/resume", self._resume)
            router.add_get("/is_paused", self._is_paused, allow_head=False)

    async def watch(self) -> None:
        """Asks for the exit some seconds after an engine died unnoticed, as vLLM's watchdog does."""
        await self.engine.dead.wait()
        await asyncio.sleep(_WATCHDOG_SECONDS)
        self.exit_requested.set()

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        status = 200
        size = 0
        try:
            if self._key is not None and request.path.startswith("/v1") and not self._authorized(request):
                status = 401
                return _json({"error": "Unauthorized"}, 401)
            response = await self._answer(request, handler)
            response.headers["Server"] = "uvicorn"
            status = response.status
            size = response.body_length if response.prepared else len(getattr(response, "body", b"") or b"")
            return response
        finally:
            path = request.match_info.route.resource.canonical if request.match_info.route.resource else "none"
            if path not in _NOT_COUNTED and status != 401:
                self.page.record_http(
                    path, request.method, status, time.monotonic() - started, request.content_length or 0, size
                )
            if self.options.access_log:
                reason = web.Response(status=status).reason
                _log_access(request, status, reason, self._log_prefix)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except BadRequest as problem:
            return error(str(problem), problem.status, problem.kind, problem.param)
        except EngineDeadError as problem:
            self._engine_died()
            return error(str(problem), 500, "InternalServerError")
        except web.HTTPException as problem:
            if problem.status in {404, 405}:
                response = _json({"detail": problem.reason}, problem.status)
                if "Allow" in problem.headers:
                    response.headers["Allow"] = problem.headers["Allow"]
                return response
            raise

    def _engine_died(self) -> None:
        # Like vLLM: the answer goes out first, then the server shuts down.
        asyncio.get_running_loop().call_later(self.options.crash_exit_seconds, self.exit_requested.set)

    def _authorized(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and sha256(token.encode()).digest() == self._key

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.engine.dead.is_set() else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self.page.render().encode(), headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"}
        )

    async def _version(self, _: web.Request) -> web.Response:
        return _json({"version": self.options.vllm_version + ".0"})

    async def _load(self, _: web.Request) -> web.Response:
        return _json({"server_load": 0})

    async def _models(self, _: web.Request) -> web.Response:
        now = int(time.time())
        permission = {
            "id": f"modelperm-{uuid.uuid4().hex[:16]}",
            "object": "model_permission",
            "created": now,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        root = f"/models/{self.options.model_names[0]}"
        models = [
            {
                "id": name,
                "object": "model",
                "created": now,
                "owned_by": "vllm",
                "root": root,
                "parent": None,
                "max_model_len": self.options.max_model_len,
                "permission": [permission],
            }
            for name in self.options.model_names
        ]
        return _json({"object": "list", "data": models})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self._model(body)
        count = count_tokens(str(body.get("prompt", "")))
        limit = self.options.max_model_len
        return _json({"count": count, "max_model_len": limit, "tokens": list(range(2, 2 + count)), "token_strs": None})

    async def _sleep(self, request: web.Request) -> web.Response:
        level = request.query.get("level", "1")
        mode = request.query.get("mode", "abort")
        if level not in {"0", "1", "2"} or mode not in {"abort", "wait", "keep"}:
            raise BadRequest("level must be 0 to 2, mode one of abort, wait, keep", kind="Bad Request", param="query")
        started = time.monotonic()
        await self.engine.sleep(int(level), mode)
        self.page.record_sleep_operation("sleep", time.monotonic() - started)
        return _json({"status": "sleeping", "level": int(level)})

    async def _wake_up(self, request: web.Request) -> web.Response:
        started = time.monotonic()
        await self.engine.wake()
        self.page.record_sleep_operation("wake", time.monotonic() - started)
        return _json({"status": "awake", "tags": request.query.getall("tags", []) or None})

    async def _is_sleeping(self, _: web.Request) -> web.Response:
        return _json({"is_sleeping": self.engine.asleep})

    async def _pause(self, request: web.Request) -> web.Response:
        mode = request.query.get("mode", "abort")
        if mode not in {"abort", "wait", "keep"}:
            raise BadRequest("mode must be one of abort, wait, keep", kind="Bad Request", param="query")
        await self.engine.pause(mode)
        return _json({"status": "paused"})

    async def _resume(self, _: web.Request) -> web.Response:
        await self.engine.resume()
        return _json({"status": "resumed"})

    async def _is_paused(self, _: web.Request) -> web.Response:
        return _json({"is_paused": await self.engine.is_paused()})

    async def _embeddings(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        model = self._model(body)
        prompts = self._prompts(body, "input", room=0)
        id_ = self._request_id(request, "embd")
        rank = self._rank(request)
        flights = [
            self.engine.submit(f"{id_}-{i}", tokens, None, (), Parent(1), rank) for i, tokens in enumerate(prompts)
        ]
        try:
            for flight in flights:
                if await flight.outputs.get() is None:
                    raise EngineDeadError
        finally:
            for flight in flights:
                self.engine.abort(flight)
        data = [
            {"index": i, "object": "embedding", "embedding": [1 / (1 + i + j) for j in range(16)]}
            for i in range(len(flights))
        ]
        usage = {"prompt_tokens": sum(prompts), "total_tokens": sum(prompts), "completion_tokens": 0}
        created = int(time.time())
        return _json({"id": id_, "object": "list", "created": created, "model": model, "data": data, "usage": usage})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        return await self._generate(request, self._generation(request, body, chat=False))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        return await self._generate(request, self._generation(request, body, chat=True))

    async def _body(self, request: web.Request) -> dict[str, object]:
        try:
            body = json.loads(await request.read())
        except ValueError as problem:
            message = f"1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body', 'msg': '{problem}'}}"
            raise BadRequest(message, kind="Bad Request", param="body") from problem
        if not isinstance(body, dict):
            raise BadRequest(
                "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body'}", kind="Bad Request"
            )
        return body

    def _model(self, body: dict[str, object]) -> str:
        model = body.get("model")
        if model is None:
            return self.options.model_names[0]
        if model not in self.options.model_names:
            aliases = ", ".join(self.options.model_names)
            message = f"The model `{model}` does not exist. Valid aliases: {aliases}."
            raise BadRequest(message, 404, "NotFoundError", "model")
        return str(model)

    def _prompts(self, body: dict[str, object], key: str, room: int) -> tuple[int, ...]:
        given = body.get(key)
        match given:
            case str() if given:
                counts = [count_tokens(given)]
            case [int(), *rest]:
                counts = [1 + len(rest)]
            case [str() | list(), *_]:
                counts = [len(one) if isinstance(one, list) else count_tokens(str(one)) for one in given]
            case _:
                raise BadRequest(
                    f"Either {key} or {key}_embeds must be provided and non-empty. (parameter={key})", param=key
                )
        self._check_length(max(counts), room)
        return tuple(counts)

    def _check_length(self, prompt_tokens: int, room: int) -> None:
        limit = self.options.max_model_len
        if prompt_tokens + room > limit:
            message = (
                f"This model's maximum context length is {limit} tokens. However, you requested {room} output tokens "
                f"and your prompt contains {prompt_tokens} input tokens, for a total of {prompt_tokens + room} tokens. "
                "Please reduce the length of the input prompt or the number of requested output tokens."
            )
            raise BadRequest(message, param="input_tokens")

    def _request_id(self, request: web.Request, kind: str) -> str:
        return f"{kind}-{request.headers.get('X-Request-Id') or uuid.uuid4().hex[:16]}"

    def _rank(self, request: web.Request) -> int | None:
        given = request.headers.get("X-data-parallel-rank")
        if given is None:
            return None
        rank = int(given) if given.isascii() and given.isdigit() else -1
        if not 0 <= rank < self.engine.ranks:
            raise BadRequest(f"data_parallel_rank {given} is out of range [0, {self.engine.ranks}).")
        return rank

    def _generation(self, request: web.Request, body: dict[str, object], *, chat: bool) -> Generation:
        model = self._model(body)
        given = body.get("max_completion_tokens") or body.get("max_tokens")
        if given is not None and (not isinstance(given, int) or given < 1):
            raise BadRequest(
                f"max_tokens must be at least 1, got {given}. (parameter=max_tokens, value={given})", param="max_tokens"
            )
        limit = self.options.max_model_len
        if given is not None and given > limit:
            message = (
                f"max_tokens={given} cannot be greater than max_model_len={limit}. Please request fewer output tokens. "
                f"(parameter=max_tokens, value={given})"
            )
            raise BadRequest(message, param="max_tokens")
        room = given or 1
        prompts = (self._chat_tokens(body, room),) if chat else self._prompts(body, "prompt", room)
        n = body.get("n") or 1
        stop = body.get("stop") or []
        stop_ids = body.get("stop_token_ids") or []
        options = body.get("stream_options") or {}
        if not isinstance(n, int) or n < 1:
            raise BadRequest(f"n must be at least 1, got {n}.", param="n")
        if not isinstance(stop, (str, list)) or not isinstance(stop_ids, list) or not isinstance(options, dict):
            raise BadRequest("1 validation error:\n  {'type': 'list_type', 'loc': 'body'}", kind="Bad Request")
        default = limit - max(prompts) if chat else min(_DEFAULT_MAX_TOKENS, limit - max(prompts))
        return Generation(
            chat=chat,
            id=self._request_id(request, "chatcmpl" if chat else "cmpl"),
            model=model,
            prompts=prompts,
            max_tokens=given or default,
            n=n,
            stop=(stop,) if isinstance(stop, str) else tuple(str(one) for one in stop),
            stop_token_ids=tuple(int(one) for one in stop_ids),
            stream=body.get("stream") is True,
            include_usage=options.get("include_usage") is True,
            rank=self._rank(request),
        )

    def _chat_tokens(self, body: dict[str, object], room: int) -> int:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            message = "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required'}"
            raise BadRequest(message, kind="Bad Request", param="body.messages")
        tokens = _CHAT_TEMPLATE_TOKENS
        for one in messages:
            if not isinstance(one, dict) or "role" not in one:
                raise BadRequest(
                    "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages.role'}", kind="Bad Request"
                )
            content = one.get("content") or ""
            text = content if isinstance(content, str) else json.dumps(content)
            tokens += _CHAT_TEMPLATE_TOKENS + count_tokens(text)
        self._check_length(tokens, room)
        return tokens

    async def _generate(self, request: web.Request, wanted: Generation) -> web.StreamResponse:
        flights: list[Flight] = []
        try:
            for i, tokens in enumerate(wanted.prompts):
                parent = Parent(wanted.n)
                for j in range(wanted.n):
                    id_ = f"{wanted.id}-{i}-{j}-{uuid.uuid4().hex[:8]}"
                    flights.append(
                        self.engine.submit(id_, tokens, wanted.max_tokens, wanted.stop_token_ids, parent, wanted.rank)
                    )
            if wanted.stream:
                return await self._stream(request, wanted, flights)
            return await self._collect(wanted, flights)
        finally:
            for flight in flights:
                self.engine.abort(flight)

    async def _token(self, flight: Flight, stop: Sequence[str]) -> tuple[str, str | None]:
        """The next text, and the finish reason with the last one."""
        output = await flight.outputs.get()
        if output is None:
            raise EngineDeadError
        token, reason = output
        text = "" if token is None or reason == "stop" else word(token)
        if reason is None and any(mark in text for mark in stop):
            self.engine.stopped(flight)
            return "", "stop"
        return text, reason

    async def _collect(self, wanted: Generation, flights: Sequence[Flight]) -> web.Response:
        choices = []
        for index, flight in enumerate(flights):
            texts: list[str] = []
            reason: str | None = None
            while reason is None:
                text, reason = await self._token(flight, wanted.stop)
                texts.append(text)
            content = "".join(texts)
            common = {"logprobs": None, "finish_reason": reason, "stop_reason": None, "token_ids": None}
            if wanted.chat:
                message = {"role": "assistant", "content": content, "refusal": None, "reasoning": None}
                choices.append({"index": index, "message": message, **common})
            else:
                choices.append({"index": index, "text": content, **common})
        answer = {
            "id": wanted.id,
            "object": "chat.completion" if wanted.chat else "text_completion",
            "created": int(time.time()),
            "model": wanted.model,
            "choices": choices,
            "system_fingerprint": self._fingerprint,
            "usage": self._usage(wanted, flights),
        }
        return _json(answer)

    async def _stream(self, request: web.Request, wanted: Generation, flights: Sequence[Flight]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Server": "uvicorn"})
        base = {
            "id": wanted.id,
            "object": "chat.completion.chunk" if wanted.chat else "text_completion",
            "created": int(time.time()),
            "model": wanted.model,
        }
        await response.prepare(request)

        async def send(value: object) -> None:
            await response.write(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")

        lock = asyncio.Lock()
        gone = False

        async def one(index: int, flight: Flight) -> None:
            reason: str | None = None
            while reason is None:
                text, reason = await self._token(flight, wanted.stop)
                delta = {"delta": {"content": text}} if wanted.chat else {"text": text}
                choice = {"index": index, **delta, "logprobs": None, "finish_reason": reason}
                async with lock:
                    await send({**base, "choices": [choice]})

        try:
            if wanted.chat:
                role = {"role": "assistant", "content": ""}
                for index in range(len(flights)):
                    choice = {"index": index, "delta": role, "logprobs": None, "finish_reason": None}
                    await send({**base, "choices": [choice]})
            async with asyncio.TaskGroup() as group:
                for index, flight in enumerate(flights):
                    group.create_task(one(index, flight))
            if wanted.include_usage:
                await send({**base, "choices": [], "usage": self._usage(wanted, flights)})
        except* EngineDeadError as problems:
            self._engine_died()
            message = str(problems.exceptions[0])
            details = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
            with suppress(ConnectionError):
                await send({"error": details})
        except* ConnectionError:
            # The client is gone; nobody reads an end.
            gone = True
        if not gone:
            with suppress(ConnectionError):
                await response.write(b"data: [DONE]\n\n")
                await response.write_eof()
        return response

    def _usage(self, wanted: Generation, flights: Sequence[Flight]) -> dict[str, int]:
        prompt = sum(wanted.prompts)
        completion = sum(flight.generated for flight in flights)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    @property
    def _fingerprint(self) -> str:
        return f"vllm-{self.options.vllm_version}.0-simulated"
