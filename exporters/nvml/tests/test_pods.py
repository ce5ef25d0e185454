"""Which container holds which card, by kubelet's word.

The contract runs against the kubelet that these tests serve, and, where DSOBS_KUBELET_SOCKET names the socket of a real
one, against that.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dsobs_nvml.pods import (
    MAX_MESSAGE_BYTES,
    STALE_SECONDS,
    Holder,
    PodResources,
    PodResourcesError,
    PodWatch,
    holders_of_answer,
)
from hypothesis import given
from hypothesis import strategies as st

from .kubelet import Kubelet, answer, container, devices, pod, varint

REAL = os.environ.get("DSOBS_KUBELET_SOCKET", "")
CARD = "GPU-00000000-0000-0000-0000-00000000000a"
PART = "MIG-00000000-0000-0000-0000-0000000000c1"


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    made = Kubelet(tmp_path / "kubelet.sock")
    yield made
    made.stop()


@pytest.fixture
def resources(tmp_path: Path) -> Iterator[PodResources]:
    made = PodResources(tmp_path / "kubelet.sock")
    yield made
    made.close()


@pytest.fixture(params=["real"] if REAL else ["served"])
def any_kubelet(request: pytest.FixtureRequest) -> Iterator[PodResources]:
    """A kubelet that answers, whatever runs on it."""
    if request.param == "real":
        made = PodResources(Path(REAL))
        yield made
        made.close()
        return
    served = request.getfixturevalue("kubelet")
    served.pods = [pod("models", "vllm-0", container("engine", devices("nvidia.com/gpu", CARD)))]
    yield request.getfixturevalue("resources")


def test_a_kubelet_names_who_holds_each_device(any_kubelet: PodResources) -> None:
    for device, holders in any_kubelet.holders().items():
        assert device.startswith(("GPU-", "MIG-", "nvidia"))
        for holder in holders:
            assert all(holder)
            assert holder.resource.startswith("nvidia.com/")


def test_a_kubelet_is_asked_again_on_the_same_connection_and_after_closing(any_kubelet: PodResources) -> None:
    first = any_kubelet.holders()
    assert any_kubelet.holders() == first
    any_kubelet.close()
    any_kubelet.close()
    assert any_kubelet.holders() == first


def test_each_device_has_its_containers(kubelet: Kubelet, resources: PodResources) -> None:
    kubelet.pods = [
        pod("models", "vllm-0", container("engine", devices("nvidia.com/gpu", CARD)), container("dsobs")),
        pod("models", "small", container("engine", devices("nvidia.com/mig-1g.10gb", PART))),
        pod("kube-system", "dns", container("dns", devices("example.com/fpga", "fpga0"))),
    ]
    assert resources.holders() == {
        CARD: [Holder("models", "vllm-0", "engine", "nvidia.com/gpu")],
        PART: [Holder("models", "small", "engine", "nvidia.com/mig-1g.10gb")],
    }


def test_a_card_in_time_slicing_has_several_holders(kubelet: Kubelet, resources: PodResources) -> None:
    shares = [devices("nvidia.com/gpu.shared", f"{CARD}::{share}") for share in range(3)]
    kubelet.pods = [
        pod("models", "one", container("engine", shares[0], shares[1])),
        pod("models", "two", container("engine", shares[2])),
    ]
    assert [holder.pod for holder in resources.holders()[CARD]] == ["one", "two"]


def test_names_of_gkes_plugin_are_those_of_the_device(kubelet: Kubelet, resources: PodResources) -> None:
    kubelet.pods = [pod("models", "vllm-0", container("engine", devices("nvidia.com/gpu", "nvidia0", "nvidia1/gi0")))]
    assert set(resources.holders()) == {"nvidia0", "nvidia1"}


def test_a_large_node_fits(kubelet: Kubelet, resources: PodResources) -> None:
    kubelet.pods = [
        pod("models", f"{'p' * 200}-{n}", container("c", devices("nvidia.com/gpu", f"GPU-{n}"))) for n in range(20_000)
    ]
    assert 4 * 2**20 < len(answer(kubelet.pods)) < MAX_MESSAGE_BYTES
    assert len(resources.holders()) == 20_000


def test_a_kubelet_that_refuses_is_an_error_with_its_word(kubelet: Kubelet, resources: PodResources) -> None:
    import grpc

    kubelet.fails = grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(PodResourcesError, match="PERMISSION_DENIED: not now"):
        resources.holders()
    kubelet.fails = None
    assert resources.holders() == {}


def test_no_socket_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(PodResourcesError, match=r"there is no .*kubelet\.sock"):
        PodResources(tmp_path / "kubelet.sock").holders()


def test_without_grpc_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(PodResourcesError, match=r"pip install 'dsobs-nvml\[pods\]'"):
        PodResources(tmp_path / "kubelet.sock").holders()


def test_an_answer_that_is_cut_off_is_an_error() -> None:
    whole = answer([pod("models", "vllm-0", container("engine", devices("nvidia.com/gpu", CARD)))])
    assert holders_of_answer(whole)
    for end in range(1, len(whole)):
        with pytest.raises(PodResourcesError):
            holders_of_answer(whole[:end])


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        holders_of_answer(data)
    except PodResourcesError:
        return


def test_fields_of_a_later_version_are_passed_over() -> None:
    later = varint(9 << 3 | 1) + bytes(8) + varint(10 << 3 | 5) + bytes(4) + varint(11 << 3) + varint(300)
    made = pod("models", "vllm-0", container("engine", devices("nvidia.com/gpu", CARD) + later) + later) + later
    assert set(holders_of_answer(answer([made]) + later)) == {CARD}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Resources:
    """Answers as the test says."""

    def __init__(self) -> None:
        self.answer: Any = {}

    def holders(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        pass


def test_the_last_answer_is_kept_for_a_minute_while_kubelet_is_away(caplog: pytest.LogCaptureFixture) -> None:
    clock, resources = Clock(), Resources()
    watch = PodWatch(resources, clock)  # type: ignore[arg-type]
    assert watch.holders() is None
    resources.answer = {CARD: [Holder("models", "vllm-0", "engine", "nvidia.com/gpu")]}
    watch.ask()
    resources.answer = PodResourcesError("kubelet: UNAVAILABLE: away")
    for _ in range(3):
        watch.ask()
    clock.now += STALE_SECONDS
    assert watch.holders() is not None
    clock.now += 1.0
    assert watch.holders() is None
    assert watch.failures == 3
    assert [record.message for record in caplog.records] == [
        "pods are unknown: kubelet: UNAVAILABLE: away; tried again every 10 s"
    ]
