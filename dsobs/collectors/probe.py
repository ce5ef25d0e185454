"""Sends one-token synthetic requests: proof of life, or of nothing, or that nothing answers."""

import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp
import orjson

from dsobs.collectors.exchange import Answer, exchange
from dsobs.config.models import Target
from dsobs.config.secret import SecretError
from dsobs.model.clock import Clock
from dsobs.model.engine import EngineAdapter, ProbeRequest
from dsobs.model.observation import Failure, Probe, ProbeOutcome

REQUEST_ID_PREFIX = "dsobs-probe-"
"""How the X-Request-Id of each probe begins, so that logs and gateways can tell it."""
_MAX_BYTES = 4 * 1024 * 1024
# "This model can't do that", by version: 404 and 405 no such endpoint, 422 not this form, 501 in 0.32.
_NEXT_FORM = frozenset({400, 404, 405, 422, 501})


@dataclass(frozen=True, slots=True)
class _Result:
    """A probe's end, before it gets its times."""

    outcome: ProbeOutcome
    detail: str = ""
    status: int | None = None
    model: str = ""
    engine: str | None = None
    latency_seconds: float | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    finish_reason: str | None = None


class Prober:
    """Probes `target`, an engine of `adapter`'s kind, within `timeout` seconds in all.

    `session` is of `open_session` and stays its maker's. What worked is remembered: the model that /v1/models named,
    and the form of request that it can answer.
    """

    def __init__(
        self, session: aiohttp.ClientSession, target: Target, adapter: EngineAdapter, clock: Clock, timeout: float
    ) -> None:
        self._session = session
        self._base = target.url.rstrip("/")
        self._api_key = target.api_key
        self._adapter = adapter
        self._clock = clock
        self._timeout = timeout
        self._model: str | None = None
        self._form = 0
        self._one_at_a_time = asyncio.Lock()

    async def probe(self, engine: str | None) -> Probe:
        """One probe; of rank `engine` where `EngineFacts.addressable` says that this works, else of None.

        Raises CancelledError only. A deadline that passes is TIMEOUT if the connection was accepted, REFUSED if not,
        also where it is /v1/models that does not answer.
        """
        async with self._one_at_a_time:
            started_at = self._clock.now()
            result = await self._probe(engine, asyncio.get_running_loop().time() + self._timeout)
            return Probe(
                started_at=started_at,
                ended_at=self._clock.now(),
                outcome=result.outcome,
                engine=result.engine,
                status=result.status,
                detail=result.detail,
                model=result.model,
                latency_seconds=result.latency_seconds,
                prompt_tokens=result.prompt_tokens,
                generated_tokens=result.generated_tokens,
                finish_reason=result.finish_reason,
            )

    async def _probe(self, engine: str | None, deadline: float) -> _Result:
        try:
            authorization = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key.reveal()}"}
        except SecretError as error:
            return _Result(ProbeOutcome.INCONCLUSIVE, f"no API key: {error}")
        remembered = self._model
        if remembered is not None:
            result = await self._ask(remembered, engine, authorization, deadline)
            if result.status != 404:
                return result
        named = await self._find_model(authorization, deadline)
        if isinstance(named, _Result):
            return named
        if named == remembered:
            return result
        return await self._ask(named, engine, authorization, deadline)

    async def _find_model(self, authorization: dict[str, str], deadline: float) -> str | _Result:
        answer = await self._send(ProbeRequest("GET", "/v1/models"), authorization, deadline)
        failed = _failed(answer, "/v1/models")
        if failed is not None:
            return failed
        model = _base_model(answer.body)
        if model is None:
            self._model = None
            return _Result(ProbeOutcome.INCONCLUSIVE, "/v1/models names no model", answer.status)
        if model != self._model:
            self._model, self._form = model, 0
        return model

    async def _ask(self, model: str, engine: str | None, authorization: dict[str, str], deadline: float) -> _Result:
        forms = self._adapter.probe_requests((model,), REQUEST_ID_PREFIX + uuid.uuid4().hex, engine)
        result = _Result(ProbeOutcome.INCONCLUSIVE, f"{self._adapter.name} has no request for this model", model=model)
        missing = False
        for turn in range(len(forms)):
            index = (self._form + turn) % len(forms)
            form = forms[index]
            answer = await self._send(form, authorization, deadline)
            result = _judged(form, model, answer)
            if answer.failure is not None or answer.status not in _NEXT_FORM:
                if result.outcome is ProbeOutcome.ANSWERED:
                    self._form = index
                return result
            missing = missing or answer.status == 404
        # A 404 is an end point that is not there, or a model that was replaced: worth another look at /v1/models.
        status = 404 if missing else result.status
        detail = f"none of {len(forms)} forms of request is for this model; the last: {result.detail}"
        return _Result(ProbeOutcome.INCONCLUSIVE, detail, status, model)

    async def _send(self, form: ProbeRequest, authorization: dict[str, str], deadline: float) -> Answer:
        return await exchange(
            self._session,
            form.method,
            self._base + form.path,
            headers={"Accept": "application/json", **form.headers, **authorization},
            deadline=deadline,
            max_bytes=_MAX_BYTES,
            json=None if form.json is None else orjson.dumps(form.json),
        )


def _failed(answer: Answer, path: str) -> _Result | None:
    """What an answer proves that is no 200; None for a 200."""
    detail = f"{path}: {answer.detail}" if answer.detail else f"{path}: status {answer.status}"
    if answer.failure is Failure.REFUSED or (answer.failure is Failure.TIMEOUT and not answer.connected):
        return _Result(ProbeOutcome.REFUSED, detail)
    if answer.failure is Failure.TIMEOUT:
        return _Result(ProbeOutcome.TIMEOUT, detail, answer.status)
    if answer.failure is not None:
        return _Result(ProbeOutcome.INCONCLUSIVE, detail, answer.status)
    if answer.status == 200:
        return None
    # 501 is "not this model", 503 "not now": neither says that the engine is broken.
    broken = answer.status is not None and answer.status >= 500 and answer.status not in (501, 503)
    return _Result(ProbeOutcome.ERROR if broken else ProbeOutcome.INCONCLUSIVE, detail, answer.status)


def _judged(form: ProbeRequest, model: str, answer: Answer) -> _Result:
    failed = _failed(answer, form.path)
    if failed is not None:
        # Its rank is said for a failure too: a time-out is that rank's.
        return _Result(failed.outcome, failed.detail, failed.status, model, form.engine)
    body = _mapping(answer.body)
    if body is None:
        return _Result(ProbeOutcome.INCONCLUSIVE, f"{form.path}: 200 without a JSON object", 200, model, form.engine)
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    reason = choice.get("finish_reason")
    return _Result(
        ProbeOutcome.ANSWERED,
        status=200,
        model=model,
        engine=form.engine,
        latency_seconds=answer.duration_seconds,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        generated_tokens=_count(usage.get("completion_tokens")),
        finish_reason=reason if isinstance(reason, str) else None,
    )


def _mapping(body: bytes) -> dict[str, object] | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _base_model(body: bytes) -> str | None:
    """The first model of /v1/models that is no LoRA adapter (those name their base as `parent`)."""
    value = _mapping(body)
    models = value.get("data") if value is not None else None
    entries: Iterable[object] = models if isinstance(models, list) else ()
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]]
    bases = [entry for entry in named if entry.get("parent") is None]
    return next((entry["id"] for entry in (bases or named)), None)
