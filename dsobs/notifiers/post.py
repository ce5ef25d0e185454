"""One bounded HTTP POST; its failures come back as an `Answer` without secrets."""

import ssl
from collections.abc import Iterable, Mapping
from functools import cache
from urllib.parse import urlsplit

import aiohttp

from dsobs.model.notifier import Answer

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
) -> Answer:
    """POSTs JSON `body` once. No redirect is followed: it may lead to another host, with the secret.

    `secrets` are starred out wherever the answer repeats them; of `url` only scheme and host are ever told.
    """
    where = redacted(url)
    timeout = aiohttp.ClientTimeout(total=deadline_seconds)
    try:
        async with session.post(
            url,
            data=body,
            headers={"Content-Type": "application/json", "User-Agent": "dsobs", **(headers or {})},
            timeout=timeout,
            allow_redirects=False,
            ssl=system_tls() if url.lower().startswith("https:") else True,
        ) as response:
            said = (await response.content.read(_BODY_READ)).decode("utf-8", "replace")
            for secret in (url, *secrets):
                if secret:
                    said = said.replace(secret, "***")
            return Answer(
                status=response.status,
                retry_after=response.headers.get("Retry-After", ""),
                detail=" ".join(said.split())[:_BODY_KEPT],
            )
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        cause = getattr(error, "os_error", None)
        why = getattr(cause, "strerror", None) or type(error).__name__
        return Answer(detail=f"{where}: no connection: {why}", arrived=False)
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        return Answer(detail=f"{where}: not an http(s) address", arrived=False)
    except TimeoutError:
        return Answer(detail=f"{where}: no answer within {deadline_seconds:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Their texts may hold the whole address.
        return Answer(detail=f"{where}: {type(error).__name__}")


@cache
def system_tls() -> ssl.SSLContext:
    """The system's CA certificates: the session's own may be those of the inference server."""
    return ssl.create_default_context()


def redacted(url: str) -> str:
    """Scheme and host of an address: its path, query and user may be secret."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or "?"
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "?"
    return f"{parts.scheme or '?'}://{host}{port}"
