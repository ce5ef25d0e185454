"""Which container holds which card: kubelet's pod-resources API, v1, over its UNIX socket.

`List` of `v1.PodResourcesLister` (k8s.io/kubelet, pkg/apis/podresources/v1/api.proto). grpc is imported when it is
used: `pip install dsobs-nvml[pods]`. The few messages that are needed are read here, field by field, so that no
generated code and no protobuf runtime is needed; fields that are not known are passed over, as protobuf wants it.
"""

import importlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

LOG = logging.getLogger("dsobs.nvml")

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
METHOD = "/v1.PodResourcesLister/List"
DEADLINE_SECONDS = 5.0
POLL_SECONDS = 10.0
"""Between two questions: a new pod has its labels after this long."""
STALE_SECONDS = 60.0
"""An answer older than this says nothing any more."""
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
RESOURCES = ("nvidia.com/",)


class PodResourcesError(Exception):
    """kubelet can't be asked, or answered what can't be read; the message says why."""


class Holder(NamedTuple):
    """A container that was given a device."""

    namespace: str
    pod: str
    container: str
    resource: str
    """nvidia.com/gpu, nvidia.com/mig-1g.10gb, …"""


Holders = dict[str, list[Holder]]
"""UUID of a card or MIG device, or `nvidiaN` (the device's minor number, as GKE's plugin names it) → who holds it."""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise PodResourcesError("kubelet's answer is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(field, bytes) of the length-delimited fields of one message, in order; others are passed over."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, kind = key >> 3, key & 7
        if kind == 0:
            _, at = _varint(data, at)
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise PodResourcesError(f"kubelet's answer has a field of the unknown wire type {kind}")
        if at + size > len(data):
            raise PodResourcesError("kubelet's answer is cut off")
        if kind == 2:
            yield field, data[at : at + size]
        at += size


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def holders_of_answer(data: bytes) -> Holders:
    """Who holds which card, by a ListPodResourcesResponse; PodResourcesError if it is none."""
    found: Holders = {}
    for pod_field, pod in _messages(data):
        if pod_field != 1:
            continue
        name, namespace, containers = "", "", []
        for field, value in _messages(pod):
            if field == 1:
                name = _text(value)
            elif field == 2:
                namespace = _text(value)
            elif field == 3:
                containers.append(value)
        for container in containers:
            _read_container(container, namespace, name, found)
    return found


def _read_container(data: bytes, namespace: str, pod: str, found: Holders) -> None:
    name, devices = "", []
    for field, value in _messages(data):
        if field == 1:
            name = _text(value)
        elif field == 2:
            devices.append(value)
    for device in devices:
        resource, ids = "", []
        for field, value in _messages(device):
            if field == 1:
                resource = _text(value)
            elif field == 2:
                ids.append(_text(value))
        if resource.startswith(RESOURCES):
            holder = Holder(namespace, pod, name, resource)
            for id_ in ids:
                holders = found.setdefault(_device(id_), [])
                if holder not in holders:
                    holders.append(holder)


def _device(id_: str) -> str:
    """`GPU-…::3` is a share of a card in time slicing; `nvidia0/vgpu1` is GKE's for the same."""
    match = re.match(r"(nvidia\d+)(?:/.*)?$", id_)
    return match[1] if match else id_.partition("::")[0]


def _grpc() -> Any:
    try:
        return importlib.import_module("grpc")
    except ImportError as error:
        raise PodResourcesError(f"{error}; pip install 'dsobs-nvml[pods]'") from error


class PodResources:
    """kubelet's answer, asked when `holders` is called. One thread at a time."""

    def __init__(self, socket: Path, timeout: float = DEADLINE_SECONDS) -> None:
        self._socket = socket
        self._timeout = timeout
        self._channel: Any = None

    def holders(self) -> Holders:
        """Who holds which card now; PodResourcesError with the reason if that is not known."""
        grpc = _grpc()
        if not self._socket.exists():
            raise PodResourcesError(f"there is no {self._socket}")
        if self._channel is None:
            options = [
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.enable_http_proxy", 0),
            ]
            self._channel = grpc.insecure_channel(f"unix:{self._socket}", options=options)
        ask = self._channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
        try:
            answer: bytes = ask(b"", timeout=self._timeout)
        except grpc.RpcError as error:
            self.close()
            raise PodResourcesError(f"kubelet: {error.code().name}: {error.details()}") from error
        return holders_of_answer(answer)

    def close(self) -> None:
        """Lets go of the connection; legal twice."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


class PodWatch:
    """Asks kubelet each ten seconds in a thread of its own and keeps the answer."""

    def __init__(self, resources: PodResources, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._resources = resources
        self._monotonic = monotonic
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dsobs-pods", daemon=True)
        self._answer: tuple[float, Holders] | None = None
        self._said = ""
        self.failures = 0
        """Questions that kubelet did not answer."""

    def start(self) -> None:
        """Begins; once in a life."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; legal before `start` and twice."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(DEADLINE_SECONDS)

    def holders(self) -> Holders | None:
        """Who holds which card; None if that is not known, or was last known too long ago."""
        answer = self._answer
        if answer is None or self._monotonic() - answer[0] > STALE_SECONDS:
            return None
        return answer[1]

    def ask(self) -> None:
        """Asks once."""
        try:
            self._answer = self._monotonic(), self._resources.holders()
        except PodResourcesError as error:
            self.failures += 1
            if str(error) != self._said:
                self._said = str(error)
                LOG.warning("pods are unknown: %s; tried again every %.0f s", error, POLL_SECONDS)
        else:
            if self._said:
                LOG.info("pods are known again")
            self._said = ""

    def _work(self) -> None:
        while not self._stopping.is_set():
            self.ask()
            self._stopping.wait(POLL_SECONDS)
        self._resources.close()
