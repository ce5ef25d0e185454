"""One question to the API of a running dsobs; with its control token where something is to be changed."""

import asyncio
from typing import Any

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.output import printable
from dsobs.config import Config


def ask(config: Config, method: str, path: str, **more: Any) -> Any:
    """`data` of the answer to `method` on `path` below `/api/v1`; `more` as aiohttp's request takes it.

    CommandError where the token is needed and can't be read (2), none answers (3) or it refuses (1).
    """
    import aiohttp

    from dsobs.config import SecretError

    async def exchange() -> tuple[int, Any]:
        # Who only looks may have none of the secrets that dsobs runs with.
        token = config.api.control_token if method != "GET" else None
        headers = {"Authorization": f"Bearer {token.reveal()}"} if token is not None else {}
        host, _, port = config.api.listen.rpartition(":")
        base = f"http://{host if host not in ('', '0.0.0.0') else '127.0.0.1'}:{port}/api/v1"  # noqa: S104
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
            session.request(method, base + path, **more) as answer,
        ):
            return answer.status, await answer.json(content_type=None)

    try:
        status, answer = asyncio.run(exchange())
    except SecretError as error:
        raise CommandError(printable(f"{error}"), ExitCode.USAGE) from error
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        message = f"no dsobs answers at {config.api.listen} (api.listen): {error}"
        raise CommandError(printable(message), ExitCode.UNREACHABLE) from error
    if status >= 400:
        told = answer.get("error") or answer.get("detail") or answer
        raise CommandError(printable(f"refused: {told}"), ExitCode.FAILED)
    return answer.get("data")
