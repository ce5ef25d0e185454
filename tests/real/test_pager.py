"""Who is paged in tests of the cluster leaves nothing behind, however its test ends. Not marked real."""

import json
import socket
import threading
import urllib.request
from typing import cast

import pytest

from tests.real.kubernetes import Cluster, serving


class Loopback:
    """What the pager needs of a cluster."""

    address = "127.0.0.1"

    def listener(self) -> socket.socket:
        return socket.create_server((self.address, 0))


CLUSTER = cast("Cluster", Loopback())


def fails() -> None:
    with serving.pager(CLUSTER) as paged:
        page = {"event": "trigger", "labels": {"alertname": "EngineDown"}}
        urllib.request.urlopen(paged.url, json.dumps(page).encode()).close()
        raise AssertionError(paged.names())


def test_pager_keeps_what_it_is_told_and_ends_with_a_test_that_fails() -> None:
    before = threading.active_count()
    with pytest.raises(AssertionError, match="EngineDown"):
        fails()
    assert threading.active_count() == before


def test_client_that_says_nothing_does_not_hold_the_pager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SILENT_SECONDS", 0.01)
    with serving.pager(CLUSTER) as paged:
        address = paged.url.removeprefix("http://").rstrip("/").split(":")
        silent = socket.create_connection((address[0], int(address[1])))
        urllib.request.urlopen(paged.url, b"{}").close()
    silent.close()
    assert paged.pages == [{}]
