"""One bounded HTTP request; its failures come back as an `Answer` without secrets."""

import ssl
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import aiohttp

from dsobs.model.notifier import Answer
from dsobs.tls import system_tls

DEADLINE_SECONDS = 10.0
_BODY_READ = 2048
_BODY_KEPT = 200


async def post_json(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str] | None = None,
    secrets: Iterable[str] = (),
    deadline_seconds: float = DEADLINE_SECONDS,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """POSTs JSON `body` once. No redirect is followed: it may lead to another host, with the secret.

    `secrets` are starred out wherever the answer repeats them; of `url` only scheme and host are ever told. `tls`: what
    an https address is trusted by, and the client's own certificate; None: the system's.
    """
    answer, _ = await ask(
        session, "POST", url, body, headers=headers, secrets=secrets, deadline_seconds=deadline_seconds, tls=tls
    )
    return answer


async def ask(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    secrets: Iterable[str] = (),
    deadline_seconds: float = DEADLINE_SECONDS,
    tls: ssl.SSLContext | None = None,
    most_bytes: int = _BODY_READ,
) -> tuple[Answer, bytes]:
    """The same with any method; also gives the first `most_bytes` of the answer's body."""
    where = redacted(url)
    kind = {"Content-Type": "application/json"} if body is not None else {}
    try:
        async with session.request(
            method,
            url,
            data=body,
            headers={**kind, "User-Agent": "dsobs", **(headers or {})},
            timeout=aiohttp.ClientTimeout(total=deadline_seconds),
            allow_redirects=False,
            ssl=(tls or system_tls()) if url.lower().startswith("https:") else True,
        ) as response:
            raw = b""
            while len(raw) < most_bytes and (chunk := await response.content.read(most_bytes - len(raw))):
                raw += chunk
            said = raw[:_BODY_READ].decode("utf-8", "replace")
            for secret in (url, *secrets):
                if secret:
                    said = said.replace(secret, "***")
            answer = Answer(
                status=response.status,
                retry_after=response.headers.get("Retry-After", ""),
                detail=" ".join(said.split())[:_BODY_KEPT],
            )
            return answer, raw
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        cause = getattr(error, "os_error", None)
        why = getattr(cause, "strerror", None) or type(error).__name__
        return Answer(detail=f"{where}: no connection: {why}", arrived=False), b""
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        return Answer(detail=f"{where}: not an http(s) address", arrived=False), b""
    except TimeoutError:
        return Answer(detail=f"{where}: no answer within {deadline_seconds:g} s"), b""
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Their texts may hold the whole address.
        return Answer(detail=f"{where}: {type(error).__name__}"), b""


def redacted(url: str) -> str:
    """Scheme and host of an address: its path, query and user may be secret."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or "?"
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "?"
    return f"{parts.scheme or '?'}://{host}{port}"
