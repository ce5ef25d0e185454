"""A kubelet that serves the pod-resources API alone, over a real gRPC server on a UNIX socket.

It writes its messages by itself (k8s.io/kubelet, pkg/apis/podresources/v1/api.proto), those fields too that are passed
over when reading.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def devices(resource: str, *ids: str) -> bytes:
    """ContainerDevices, with the topology that kubelet adds."""
    topology = field(1, field(1, 1))
    return field(1, resource) + b"".join(field(2, id_) for id_ in ids) + field(3, topology)


def container(name: str, *given: bytes) -> bytes:
    """ContainerResources, with CPUs and memory."""
    memory = field(1, "memory") + field(2, 1 << 33)
    return field(1, name) + b"".join(field(2, one) for one in given) + field(3, varint(4)) + field(4, memory)


def pod(namespace: str, name: str, *containers: bytes) -> bytes:
    """PodResources."""
    return field(1, name) + field(2, namespace) + b"".join(field(3, one) for one in containers)


def answer(pods: Sequence[bytes]) -> bytes:
    """ListPodResourcesResponse."""
    return b"".join(field(1, one) for one in pods)


class Kubelet:
    """Answers `List` with `pods` until it is stopped; `fails`: with this status instead."""

    def __init__(self, socket: Path) -> None:
        self.pods: list[bytes] = []
        self.fails: grpc.StatusCode | None = None
        self.asked = 0
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        handler = grpc.unary_unary_rpc_method_handler(self._list)
        service = grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler})
        self._server.add_generic_rpc_handlers((service,))
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()

    def _list(self, request: bytes, context: Any) -> bytes:
        assert request == b""
        self.asked += 1
        if self.fails is not None:
            context.abort(self.fails, "not now")
        return answer(self.pods)

    def stop(self) -> None:
        self._server.stop(0).wait()
