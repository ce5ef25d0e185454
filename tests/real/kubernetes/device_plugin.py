"""A device plugin (k8s.io/kubelet, pkg/apis/deviceplugin/v1beta1/api.proto) whose cards are only names.

What kubelet then does with them is its own: it counts them, gives them to containers, and tells who holds which.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc  # type: ignore[import-untyped]

_FOLDER = Path("var/lib/kubelet/device-plugins")
"""Below a cluster's folder, where its host has /var/lib."""
_SERVICE = "v1beta1.DevicePlugin"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _plain(message: bytes) -> bytes:
    return message


class DevicePlugin:
    """Offers `resource` with these devices until it is closed, as a context. `folder`: that of the cluster."""

    def __init__(self, folder: Path, resource: str, devices: Sequence[str]) -> None:
        self._folder = folder / _FOLDER
        self._resource = resource
        self._devices = b"".join(_field(1, _field(1, device) + _field(2, "Healthy")) for device in devices)
        self._end = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        answers = {
            "GetDevicePluginOptions": grpc.unary_unary_rpc_method_handler(lambda *_: b"", _plain, _plain),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(self._list, _plain, _plain),
            "Allocate": grpc.unary_unary_rpc_method_handler(self._allocate, _plain, _plain),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, answers),))

    def _list(self, _: bytes, context: Any) -> Iterator[bytes]:
        yield self._devices
        self._end.wait()

    @staticmethod
    def _allocate(*_: Any) -> bytes:
        # One answer for the one container of a request, with nothing to mount and no variable.
        return _field(1, b"")

    def __enter__(self) -> Self:
        endpoint = "test.sock"
        self._server.add_insecure_port(f"unix://{self._folder / endpoint}")
        self._server.start()
        with grpc.insecure_channel(f"unix://{self._folder / 'kubelet.sock'}") as channel:
            register = channel.unary_unary("/v1beta1.Registration/Register", _plain, _plain)
            asked = _field(1, "v1beta1") + _field(2, endpoint) + _field(3, self._resource)
            register(asked, timeout=10.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._server.stop(None).wait()
