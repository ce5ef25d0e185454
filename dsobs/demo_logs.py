"""The demo's last scene: the log records of its incident, found by its id."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

PASSWORD = "ELASTICSEARCH_PASSWORD"  # noqa: S105 - a variable's name
FOUND_SECONDS = 15.0
SHOWN = 12
_WIDTH = 150
LAST = "verify done"
"""Stands in the record that is shipped last."""


class DemoError(Exception):
    """The story could not be told; the message says where it ended."""


@dataclass(frozen=True)
class ElasticsearchHere:
    """Where the records go too; the password is in the environment."""

    url: str
    user: str

    @property
    def settings(self) -> dict[str, str]:
        """Of dsobs: to the file, and from there to it."""
        return {
            "logs.elasticsearch.urls": self.url,
            "logs.elasticsearch.user": self.user,
            "logs.elasticsearch.password": f"env:{PASSWORD}",
            "logs.edge.enabled": "true",
        }

    async def find(self, session: aiohttp.ClientSession, incident: str) -> list[dict[str, Any]]:
        """Records with the incident's id, in the order of time."""
        auth = aiohttp.BasicAuth(self.user, os.environ.get(PASSWORD, ""))
        query = {"size": 1000, "query": {"term": {"labels.incident_id": incident}}}
        streams = f"{self.url}/logs-dsobs.incident-*"
        async with session.post(f"{streams}/_refresh", auth=auth):
            pass
        async with session.post(f"{streams}/_search", json=query, auth=auth) as answer:
            told = await answer.json()
        if answer.status != 200:
            raise DemoError(f"{self.url} answers {answer.status}: {told.get('error')}")
        return sorted((hit["_source"] for hit in told["hits"]["hits"]), key=lambda one: str(one["@timestamp"]))


async def show_logs(
    session: aiohttp.ClientSession,
    state: Path,
    incident: str,
    say: Callable[[str], None],
    elastic: ElasticsearchHere | None,
) -> None:
    """Prints what `dsobs logs search` finds of the incident, and what Elasticsearch does; DemoError if nothing."""
    deadline = time.monotonic() + FOUND_SECONDS
    found = await _search(state, incident, "0")
    while LAST not in found:
        if time.monotonic() > deadline:
            raise DemoError(f"the records of incident {incident} were not found within {FOUND_SECONDS:.0f} s")
        await asyncio.sleep(0.2)
        found = await _search(state, incident, "0")
    say(f"\n$ dsobs logs search --incident {incident} --before 0")
    for line in found.splitlines()[-SHOWN:]:
        say(line[:_WIDTH])
    around = await _search(state, incident, "15s")
    engine = [line for line in around.splitlines() if incident not in line and "HTTP/1.1" not in line]
    say(f"\n$ dsobs logs search --incident {incident} --before 15s | grep -v HTTP/1.1")
    for line in engine[:SHOWN]:
        say(line[:_WIDTH])
    if elastic is None:
        return
    documents: list[dict[str, Any]] = []
    while time.monotonic() < deadline + FOUND_SECONDS:
        documents = await elastic.find(session, incident)
        if any(LAST in str(one["message"]) for one in documents):
            break
        await asyncio.sleep(0.2)
    else:
        raise DemoError(f"the records of incident {incident} are not in {elastic.url}")
    say(f"\nin Elasticsearch, labels.incident_id:{incident} finds {len(documents)} records:")
    for one in documents[:SHOWN]:
        say(f"{one['@timestamp']}  {one['event.action']:<18} {one['message']}"[:_WIDTH])


async def _search(state: Path, incident: str, before: str) -> str:
    words = ("logs", "search", "--state-dir", str(state), "--incident", incident, "--before", before, "--limit", "0")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dsobs.cli", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    return out.decode()
