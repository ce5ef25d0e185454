"""Questions to the Elasticsearch of the settings, each failure one line for the user."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.config.logs import Elasticsearch, Logs
from dsobs.logs.indices.install import Ask, InstallError

_NOT_ELASTICSEARCH = (
    "{} is not Elasticsearch: its answers lack X-Elastic-Product. OpenSearch is not supported: the client refuses it"
)


def settings_of(logs: Logs) -> Elasticsearch:
    """The section, with the index that is in force; CommandError if it is not there."""
    if logs.elasticsearch is None:
        raise CommandError(
            "no Elasticsearch is configured; set logs.elasticsearch.urls (--set logs.elasticsearch.urls="
            "http://127.0.0.1:9200)",
            ExitCode.USAGE,
        )
    return logs.elasticsearch.model_copy(update={"index": logs.index})


@contextlib.asynccontextmanager
async def connected(settings: Elasticsearch) -> AsyncIterator[Ask]:
    """A connection; CommandError where the client is not installed or a secret or certificate is not there."""
    try:
        from elasticsearch import ApiError, TransportError, UnsupportedProductError

        from dsobs.logs.sinks.elasticsearch import authorization, connect
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed; pip install 'dsobs[logs]'", ExitCode.FAILED) from None
    from dsobs.config.secret import SecretError

    where = ", ".join(f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in settings.urls)
    try:
        headers = {**authorization(settings), "accept": "application/json", "content-type": "application/json"}
        client = connect(settings)
    except SecretError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"logs.elasticsearch: {error}", ExitCode.USAGE) from None

    async def ask(method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        data = None if body is None else orjson.dumps(body)
        try:
            answer = await client.perform_request(method, f"/{path}", headers=headers, body=data)
        except UnsupportedProductError:
            raise InstallError(_NOT_ELASTICSEARCH.format(where)) from None
        except ApiError as error:
            # The client looks at answers that are no errors only; "not found" is the first that OpenSearch gives.
            if error.status_code == 404 and error.meta.headers.get("x-elastic-product") != "Elasticsearch":
                raise InstallError(_NOT_ELASTICSEARCH.format(where)) from None
            return error.status_code, error.body
        except TransportError as error:
            raise InstallError(
                f"{where}: {error.message}; check logs.elasticsearch.urls, and that Elasticsearch runs there",
                unreachable=True,
            ) from None
        return answer.meta.status, answer.body

    try:
        yield ask
    finally:
        await client.close()
