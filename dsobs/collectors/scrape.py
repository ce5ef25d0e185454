"""Reads the engine's metrics page: one request at a time, over by its deadline, no larger than its limit.

vLLM's page needs no key, so none is sent.
"""

import asyncio
from typing import Protocol

import aiohttp

from dsobs.collectors.exchange import Answer, exchange
from dsobs.config.models import Target
from dsobs.model.clock import Clock
from dsobs.model.observation import Failure, Scrape
from dsobs.model.samples import Page
from dsobs.series.exposition import ExpositionError, Parser

# Without this, OpenMetrics comes with names that its own TYPE lines do not know (`vllm_…` under `vllm:…`).
_HEADERS = {"Accept": "text/plain;version=0.0.4;q=1,text/plain;q=0.5,*/*;q=0.1"}


class PageParser(Protocol):
    """What turns a body into a page."""

    def parse(self, body: str, openmetrics: bool = False) -> Page:
        """The page; ExpositionError if it is none."""
        ...


class Scraper:
    """Scrapes `target` at `path` ("/metrics"). `session` is of `open_session` and stays its maker's."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Target,
        path: str,
        clock: Clock,
        parser: PageParser | None = None,
    ) -> None:
        self._session = session
        self._url = target.url.rstrip("/") + path
        self._timeout = target.scrape_timeout
        self._max_bytes = target.max_page_bytes
        self._max_series = target.max_series
        self._clock = clock
        self._parser: PageParser = parser if parser is not None else Parser()
        self._one_at_a_time = asyncio.Lock()

    async def scrape(self) -> Scrape:
        """One scrape; over after `scrape_timeout` at the latest, its time counted from when it is sent.

        Raises CancelledError only: what went wrong is in `failure`. `text` is kept where the body could
        not be parsed too, for the flight recorder; not where it was no text.
        """
        async with self._one_at_a_time:
            loop = asyncio.get_running_loop()
            answer = await exchange(
                self._session,
                "GET",
                self._url,
                headers=_HEADERS,
                deadline=loop.time() + self._timeout,
                max_bytes=self._max_bytes,
            )
            at = self._clock.now()
            page, text, failure, detail = self._read(answer)
            return Scrape(
                at=at,
                duration_seconds=answer.duration_seconds,
                page=page,
                text=text,
                failure=failure,
                detail=detail,
                status=answer.status,
                connected=answer.connected,
                answered=answer.answered,
            )

    def _read(self, answer: Answer) -> tuple[Page | None, str | None, Failure | None, str]:
        if answer.failure is not None:
            return None, None, answer.failure, answer.detail
        if answer.status != 200:
            return None, None, Failure.HTTP_STATUS, f"status {answer.status}"
        try:
            text = answer.body.decode()
        except UnicodeDecodeError:
            return None, None, Failure.UNPARSABLE, "the body is not UTF-8"
        kind = answer.content_type.partition(";")[0].strip().lower()
        if kind == "text/html":
            return None, text, Failure.UNPARSABLE, "the body is HTML: is this address the engine's?"
        series = text.count("\n") - text.count("\n#") - text.startswith("#")
        if series > self._max_series:
            detail = f"{series} series, the limit is {self._max_series} (target.max_series)"
            # Not for the flight recorder either.
            return None, None, Failure.TOO_MANY_SERIES, detail
        try:
            page = self._parser.parse(text, openmetrics=kind == "application/openmetrics-text")
        except ExpositionError:
            # Its message quotes the body, which may hold anything.
            return None, text, Failure.UNPARSABLE, "the body is no metrics page"
        if not page.samples:
            return None, text, Failure.UNPARSABLE, "the page is empty"
        return page, text, None, ""
