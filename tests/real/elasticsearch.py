"""A private Elasticsearch, one node with security: a fresh copy for each start, nothing left behind."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

SCRIPT = Path(__file__).with_name("elasticsearch.sh")
INSTALL_SECONDS = 600.0
START_SECONDS = 420.0
NOBODY = 65534
"""Elasticsearch refuses to run as root."""
ADMIN, WRITER, STRANGER = ("admin", "admin-secret"), ("writer", "writer-secret"), ("stranger", "stranger-secret")
"""(user, password): all rights; `create_doc` and `auto_configure` on logs*; none on any index."""
_JAVA_OPTIONS = "-Xms512m -Xmx512m -XX:TieredStopAtLevel=1 -XX:-UseG1GC -XX:+UseSerialGC"
"""A server that lives for a minute never earns what the optimising compiler takes: half the time of a processor."""
_ROLES = """\
writer:
  indices: [{names: ['logs*', 'deepseek-logs'], privileges: [create_doc, auto_configure]}]
stranger:
  cluster: [monitor]
"""


class ElasticsearchUnavailable(Exception):
    """No server can be had here; the message has the reason."""


def _said(*words: str, version: str) -> str:
    done = subprocess.run(
        ["bash", str(SCRIPT), *words],
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
        env={**os.environ, "VERSION": version},
    )
    if done.returncode:
        raise ElasticsearchUnavailable(done.stderr[-2000:])
    return done.stdout.strip().splitlines()[-1]


class Elasticsearch:
    """A server on a port of its own, as an asynchronous context; ElasticsearchUnavailable if it does not come up."""

    def __init__(
        self,
        version: str = "9.2.0",
        settings: Mapping[str, str] | None = None,
        *,
        roles: Mapping[str, Any] | None = None,
        tls: Mapping[str, Path] | None = None,
    ) -> None:
        """`settings`: further lines of elasticsearch.yml. `roles`: name → definition of more roles; each has a user of
        its name, with the password NAME-secret. `tls`: `ca`, `certificate` and `key` as PEM; then it speaks https, and
        asks for client certificates of that CA without insisting on them."""
        self.version = version
        self.port = _free_port()
        self.stream = "logs-test"
        """A data stream that tests write to."""
        self._tls = tls
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._settings = dict(settings or {})
        self._roles = dict(roles or {})
        self._folder = Path(tempfile.mkdtemp(prefix="elasticsearch-"))
        self._home = self._folder / "home"
        self._process: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self._prepare)
            await self.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.kill)
        await self.close_session()
        await asyncio.to_thread(shutil.rmtree, self._folder, True)

    def _prepare(self) -> None:
        shutil.copytree(_said("home", version=self.version), self._home)
        self._java = _said("java", version=self.version)
        config = self._home / "config"
        lines = {
            "discovery.type": "single-node",
            "network.host": "127.0.0.1",
            "http.port": str(self.port),
            "xpack.security.enabled": "true",
            "xpack.security.autoconfiguration.enabled": "false",
            "xpack.security.http.ssl.enabled": "false",
            "xpack.security.transport.ssl.enabled": "false",
            "cluster.routing.allocation.disk.threshold_enabled": "false",
            **self._take_certificates(config),
            **self._settings,
        }
        (config / "elasticsearch.yml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
        (config / "roles.yml").write_text(_ROLES + yaml.safe_dump(self._roles) * bool(self._roles))
        more = [((name, f"{name}-secret"), name) for name in self._roles]
        users = ((ADMIN, "superuser"), (WRITER, "writer"), (STRANGER, "stranger"), *more)
        (config / "users").write_text("".join(f"{user}:{_hashed(password)}\n" for (user, password), _ in users))
        (config / "users_roles").write_text("".join(f"{role}:{user}\n" for (user, _), role in users))
        if os.geteuid() == 0:
            self._folder.chmod(0o755)
            for path in (self._home, *self._home.rglob("*")):
                os.chown(path, NOBODY, NOBODY)

    def _take_certificates(self, config: Path) -> dict[str, str]:
        if self._tls is None:
            return {}
        for name, path in self._tls.items():
            shutil.copyfile(path, config / f"{name}.pem")
        ssl_ = "xpack.security.http.ssl"
        return {
            f"{ssl_}.enabled": "true",
            f"{ssl_}.key": "key.pem",
            f"{ssl_}.certificate": "certificate.pem",
            f"{ssl_}.certificate_authorities": "ca.pem",
            f"{ssl_}.client_authentication": "optional",
        }

    def _launch(self) -> "subprocess.Popen[bytes]":
        root = os.geteuid() == 0
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self._home / "bin/elasticsearch")],
                stdout=log,
                stderr=log,
                cwd=self._home,
                start_new_session=True,
                env={
                    **os.environ,
                    "ES_JAVA_HOME": self._java,
                    "ES_JAVA_OPTS": _JAVA_OPTIONS,
                    "CLI_JAVA_OPTS": "-XX:TieredStopAtLevel=1",
                    "HOME": str(self._home),
                },
                user=NOBODY if root else None,
                group=NOBODY if root else None,
                extra_groups=[] if root else None,
            )

    async def start(self) -> None:
        """Starts it, and waits until it answers."""
        self._process = await asyncio.to_thread(self._launch)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                status, _ = await self.ask("GET", "/_cluster/health")
                if status == 200:
                    return
            except aiohttp.ClientError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ElasticsearchUnavailable((self._folder / "log").read_text(errors="replace")[-3000:])
            await asyncio.sleep(0.5)

    def kill(self) -> None:
        """SIGKILL to all of it, as a power loss of its machine; its data stay until the context ends."""
        if self._process is not None:
            # The session is its own: the launcher and the JVM that it starts.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def ask(self, method: str, path: str, body: Any = None, *, user: tuple[str, str] = ADMIN) -> tuple[int, Any]:
        """Status and JSON of one request; a text is sent as lines of JSON."""
        if self._session is None:
            trusted = ssl.create_default_context(cafile=self._tls["ca"]) if self._tls else True
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted))
        token = base64.b64encode(":".join(user).encode()).decode()
        headers = {"Authorization": f"Basic {token}"}
        if isinstance(body, str):
            headers["Content-Type"] = "application/x-ndjson"
            sent: Any = {"data": body}
        else:
            sent = {"json": body}
        async with self._session.request(method, self.url + path, headers=headers, **sent) as response:
            return response.status, await response.json()

    async def close_session(self) -> None:
        """Before the loop ends in which it was asked; legal twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def must(self, method: str, path: str, body: Any = None) -> Any:
        """The same; AssertionError where it is refused."""
        status, answer = await self.ask(method, path, body)
        assert status < 300, answer
        return answer

    async def msearch(self, index: str, bodies: Sequence[Any]) -> list[dict[str, Any]]:
        """Answers to several searches at once, as Grafana asks them; AssertionError where one is refused."""
        head = {"index": index, "ignore_unavailable": True, "search_type": "query_then_fetch"}
        lines = "".join(f"{json.dumps(head)}\n{json.dumps(body)}\n" for body in bodies)
        answers: list[dict[str, Any]] = (await self.must("POST", "/_msearch", lines))["responses"]
        assert [one["status"] for one in answers] == [200] * len(bodies), answers
        return answers

    async def documents(self, index: str) -> list[dict[str, Any]]:
        """All documents of an index or data stream, with `_id` and `_index`, in no order."""
        await self.must("POST", f"/{index}/_refresh")
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {"size": 10_000, "sort": [{"_doc": "asc"}]}
        page = await self.must("POST", f"/{index}/_search?scroll=1m", query)
        while page["hits"]["hits"]:
            found += [{"_id": hit["_id"], "_index": hit["_index"], **hit["_source"]} for hit in page["hits"]["hits"]]
            page = await self.must("POST", "/_search/scroll", {"scroll": "1m", "scroll_id": page["_scroll_id"]})
        return found


def _hashed(password: str) -> str:
    """As a file of users has it: Elastic's form of PBKDF2. Their own command for it takes a Java a user."""
    salt = os.urandom(32)
    made = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 1000, dklen=32)
    return f"{{PBKDF2}}1000${base64.b64encode(salt).decode()}${base64.b64encode(made).decode()}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
