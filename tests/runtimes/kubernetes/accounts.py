"""A client of an API server with one token."""

from typing import Any

from lightkube import KubeConfig
from lightkube.config.models import Cluster, User

from dsobs.runtimes.kubernetes.api import Api, _client
from dsobs.runtimes.kubernetes.identity import Identity


def api_of(url: str, token: str, identity: Identity, *, ca: str | None = None, gap: float = 0.0) -> Api:
    """Of the server at `url`; `gap`: seconds between the beginnings of two watches."""
    cluster: Any = Cluster(server=url, certificate_auth=ca) if ca else Cluster(server=url)
    return Api(_client(KubeConfig.from_one(cluster=cluster, user=User(token=token)), gap=gap), identity)
