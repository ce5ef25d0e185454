"""Shared memory, disk and the engine's cgroup, over trees in the shape of /proc and /sys that the kernel documents."""

import asyncio
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from dsobs.collectors.host import STALE_SECONDS, HostCollector, cgroup_values, host_samples
from dsobs.config.models import Host as HostSettings
from dsobs.model.clock import ManualClock
from dsobs.model.observation import HostView, Observation, RuntimeView, Scrape, Unknown
from dsobs.model.samples import Sample, labels
from dsobs.model.signals import SIGNALS
from dsobs.recorder.records import host_of, record_of

PID = 4242
RUNNING = RuntimeView("process", "vllm", running=True, pids=(PID, PID + 1))


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def v2(folder: Path, members: str = str(PID), **more: str) -> None:
    write(
        folder,
        cgroup__procs=members,
        memory__current="8589934592",
        memory__stat="anon 6442450944\nfile 2147483648\ninactive_file 1073741824",
        memory__max="max",
        memory__events="low 0\nhigh 0\nmax 12\noom 1\noom_kill 1",
        cpu__stat="usage_usec 9000000\nnr_periods 10\nnr_throttled 2\nthrottled_usec 1500000",
        cpu__pressure="some avg10=1.00 avg60=0.00 avg300=0.00 total=2500000\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=500000",
        cpu__max="200000 100000",
        **more,
    )


def proc(root: Path, cgroup: str, pid: int = PID) -> None:
    write(root / f"proc/{pid}", cgroup=cgroup)


V2_VALUES = {
    "memory_usage_bytes": 8589934592,
    "memory_working_set_bytes": 7516192768,
    "oom_kills": 1,
    "cpu_waiting_seconds": 2.5,
    "cpu_stalled_seconds": 0.5,
    "cpu_throttled_seconds": 1.5,
}


def test_cgroup_v2_is_read_in_base_units(tmp_path: Path) -> None:
    proc(tmp_path, "0::/kubepods/pod1/engine")
    v2(tmp_path / "sys/fs/cgroup/kubepods/pod1/engine")
    assert cgroup_values(PID, tmp_path) == V2_VALUES


def test_the_lowest_limit_on_the_way_up_holds(tmp_path: Path) -> None:
    proc(tmp_path, "0::/kubepods/pod1/engine")
    top = tmp_path / "sys/fs/cgroup"
    v2(top / "kubepods/pod1/engine")
    (top / "kubepods/pod1/engine/memory.max").write_text("34359738368\n")
    write(top / "kubepods/pod1", memory__max="17179869184")
    write(top / "kubepods", memory__max="max")
    assert cgroup_values(PID, tmp_path)["memory_limit_bytes"] == 17179869184


def test_cgroup_v1_is_read_in_base_units(tmp_path: Path) -> None:
    proc(tmp_path, "9:name=systemd:/\n4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/")
    write(
        tmp_path / "sys/fs/cgroup/memory/docker/abc",
        cgroup__procs=f"1\n{PID}",
        memory__usage_in_bytes="8589934592",
        memory__stat="cache 1\nhierarchical_memory_limit 17179869184\ntotal_inactive_file 1073741824",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3",
    )
    write(
        tmp_path / "sys/fs/cgroup/cpu/docker/abc",
        cgroup__procs=str(PID),
        cpu__stat="nr_periods 5\nnr_throttled 1\nthrottled_time 1500000000",
    )
    assert cgroup_values(PID, tmp_path) == {
        "memory_usage_bytes": 8589934592,
        "memory_working_set_bytes": 7516192768,
        "memory_limit_bytes": 17179869184,
        "oom_kills": 3,
        "cpu_throttled_seconds": 1.5,
    }


def test_cgroup_v1_without_a_limit_has_none(tmp_path: Path) -> None:
    proc(tmp_path, "4:memory:/docker/abc")
    write(
        tmp_path / "sys/fs/cgroup/memory/docker/abc",
        cgroup__procs=str(PID),
        memory__usage_in_bytes="1",
        memory__stat="hierarchical_memory_limit 9223372036854771712",
    )
    assert cgroup_values(PID, tmp_path) == {"memory_usage_bytes": 1}


def test_another_containers_cgroup_is_read_through_its_own_mount(tmp_path: Path) -> None:
    proc(tmp_path, "0::/../engine")
    v2(tmp_path / "sys/fs/cgroup", members="1")
    v2(tmp_path / f"proc/{PID}/root/sys/fs/cgroup")
    assert cgroup_values(PID, tmp_path) == V2_VALUES


@pytest.mark.parametrize("members", ["1", "0\n0", ""])
def test_a_cgroup_that_is_not_the_engines_is_never_taken_for_it(tmp_path: Path, members: str) -> None:
    proc(tmp_path, "0::/")
    v2(tmp_path / "sys/fs/cgroup", members=members)
    assert cgroup_values(PID, tmp_path) == {}


def test_the_whole_machine_is_no_ones_cgroup(tmp_path: Path) -> None:
    proc(tmp_path, "4:memory:/\n1:cpu:/")
    for controller in ("memory", "cpu"):
        write(tmp_path / f"sys/fs/cgroup/{controller}", cgroup__procs=str(PID), release_agent="", cpu__stat="x 1")
    (tmp_path / "sys/fs/cgroup/memory/memory.usage_in_bytes").write_text("5\n")
    assert cgroup_values(PID, tmp_path) == {}
    proc(tmp_path, "0::/")
    root = tmp_path / "sys/fs/cgroup"
    write(root, cgroup__procs=str(PID), cpu__stat="throttled_usec 5", cpu__pressure="some total=5\nfull total=5")
    assert cgroup_values(PID, tmp_path) == {}


def test_what_a_kernel_does_not_have_is_not_there(tmp_path: Path) -> None:
    proc(tmp_path, "0::/engine")
    write(tmp_path / "sys/fs/cgroup/engine", cgroup__procs=str(PID), memory__current="7", memory__stat="odd")
    assert cgroup_values(PID, tmp_path) == {"memory_usage_bytes": 7}


def test_a_process_that_is_gone_has_nothing(tmp_path: Path) -> None:
    assert cgroup_values(PID, tmp_path) == {}


def test_the_cgroup_of_a_real_process_gives_numbers() -> None:
    for value in cgroup_values(os.getpid()).values():
        assert value >= 0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


def collector(clock: ManualClock, state: Path, root: Path, deadline: float = 30.0, **settings: Any) -> HostCollector:
    return HostCollector(HostSettings(**settings), state, clock, root, deadline)


async def view_of(collector: HostCollector, runtime: RuntimeView | Unknown = RUNNING) -> HostView:
    view = await collector.read(runtime)
    assert isinstance(view, HostView)
    return view


async def test_a_cgroup_that_dsobs_is_in_too_is_not_the_engines_and_that_is_said_once(
    clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for pid in (PID, os.getpid()):
        proc(tmp_path, "0::/user.slice/session-1.scope", pid)
    v2(tmp_path / "sys/fs/cgroup/user.slice/session-1.scope", f"{PID}\n{os.getpid()}")
    host = collector(clock, tmp_path, tmp_path)
    for _ in range(2):
        view = await view_of(host)
        assert (view.memory_usage_bytes, view.cpu_waiting_seconds) == (None, None)
        clock.advance(60.0)
    assert [r.message for r in caplog.records if "dsobs runs in the same one" in r.message] == [
        "memory and CPU of the engine's cgroup are unknown: dsobs runs in the same one; start one of them in a "
        "container, a service or a scope of its own"
    ]
    proc(tmp_path, "0::/user.slice/session-2.scope", os.getpid())
    assert (await view_of(host)).memory_usage_bytes == V2_VALUES["memory_usage_bytes"]


async def test_one_unused_v2_tree_beside_v1_does_not_make_two_containers_one(
    clock: ManualClock, tmp_path: Path
) -> None:
    """Under v1 the line `0::` says where systemd put the runtime; memory and CPU are counted elsewhere."""
    proc(tmp_path, "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/system.slice/containerd.service")
    proc(tmp_path, "4:memory:/docker/def\n3:cpu,cpuacct:/docker/def\n0::/system.slice/containerd.service", os.getpid())
    write(
        tmp_path / "sys/fs/cgroup/memory/docker/abc",
        cgroup__procs=str(PID),
        memory__usage_in_bytes="7",
        memory__stat="total_inactive_file 2",
    )
    assert (await view_of(collector(clock, tmp_path, tmp_path))).memory_usage_bytes == 7


@pytest.mark.parametrize(
    ("engine", "own"), [("/pod", "/pod/dsobs"), ("/pod/engine", "/pod"), ("/", "/a"), ("/..", "/")]
)
async def test_a_cgroup_that_holds_dsobs_further_down_counts_its_use_too(
    clock: ManualClock, tmp_path: Path, engine: str, own: str
) -> None:
    """Memory and CPU of a cgroup are those of all below it; what is above the engine's is no matter."""
    proc(tmp_path, f"0::{engine}")
    proc(tmp_path, f"0::{own}", os.getpid())
    v2(tmp_path / "sys/fs/cgroup" / engine.lstrip("/"))
    v2(tmp_path / f"proc/{PID}/root/sys/fs/cgroup")
    known = (await view_of(collector(clock, tmp_path, tmp_path))).memory_usage_bytes is not None
    assert known == (engine == "/pod/engine")


async def test_a_relative_state_folder_is_named_in_full(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "st").mkdir()
    view = await view_of(collector(clock, Path("st"), tmp_path))
    assert [mountpoint for mountpoint, _, _ in view.filesystems] == [str(tmp_path / "st")]


async def test_what_is_mounted_read_only_is_no_disk_that_fills_up(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def told(path: Path) -> os.statvfs_result:
        found = real(path)
        # The flags stand behind the ten fields of the sequence.
        return found if path == tmp_path else os.statvfs_result((*found[:8], found.f_flag | os.ST_RDONLY, *found[9:]))

    monkeypatch.setattr("dsobs.collectors.host.os.statvfs", told)
    view = await view_of(collector(clock, tmp_path, tmp_path, mountpoints=(Path("/"),)))
    assert [mountpoint for mountpoint, _, _ in view.filesystems] == [str(tmp_path)]


async def test_disk_of_the_state_folder_and_of_each_mount_point_is_read(clock: ManualClock, tmp_path: Path) -> None:
    view = await view_of(collector(clock, tmp_path, tmp_path, mountpoints=(Path("/"), tmp_path)))
    assert [mountpoint for mountpoint, _, _ in view.filesystems] == [str(tmp_path), "/"]
    for _, avail, size in view.filesystems:
        assert 0 < avail <= size


async def test_shared_memory_is_the_engines_own(clock: ManualClock, tmp_path: Path) -> None:
    assert (await view_of(collector(clock, tmp_path, tmp_path))).shm_size_bytes is None
    (tmp_path / f"proc/{PID}/root/dev/shm").mkdir(parents=True)
    view = await view_of(collector(clock, tmp_path, tmp_path))
    assert view.shm_size_bytes is not None
    assert view.shm_used_bytes is not None
    assert 0 <= view.shm_used_bytes <= view.shm_size_bytes


async def test_shared_memory_may_be_named_where_the_engine_cant_be_looked_into(
    clock: ManualClock, tmp_path: Path
) -> None:
    view = await view_of(collector(clock, tmp_path, tmp_path, shm=Path("/dev/shm")), Unknown("no runtime"))
    assert view.shm_size_bytes


async def test_an_engine_that_does_not_run_has_no_cgroup(clock: ManualClock, tmp_path: Path) -> None:
    proc(tmp_path, "0::/engine")
    v2(tmp_path / "sys/fs/cgroup/engine")
    assert (await view_of(collector(clock, tmp_path, tmp_path))).memory_usage_bytes == 8589934592
    for runtime in (RuntimeView("process", "vllm", running=False, pids=(PID,)), Unknown("no runtime")):
        assert (await view_of(collector(clock, tmp_path, tmp_path), runtime)).memory_usage_bytes is None


async def test_a_path_that_is_not_there_is_said_once(
    clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = collector(clock, tmp_path / "nowhere", tmp_path)
    for _ in range(3):
        assert (await view_of(made)).filesystems == ()
        clock.advance(5.0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_it_is_read_no_more_often_than_the_setting_says(clock: ManualClock, tmp_path: Path) -> None:
    made = collector(clock, tmp_path, tmp_path, interval=5.0)
    first = await view_of(made)
    clock.advance(4.0)
    assert await view_of(made) is first
    clock.advance(1.0)
    assert (await view_of(made)).at == 1005.0


async def test_a_file_system_that_hangs_is_unknown_and_not_asked_again_meanwhile(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free, asked, real = threading.Event(), threading.Semaphore(0), os.statvfs

    def hangs(path: Any) -> Any:
        asked.release()
        assert free.wait(30)
        return real(path)

    monkeypatch.setattr("dsobs.collectors.host.os.statvfs", hangs)
    made = collector(clock, tmp_path, tmp_path, deadline=0.05)
    for _ in range(3):
        assert await made.read(RUNNING) == Unknown("a file system does not answer")
        clock.advance(5.0)
    assert asked.acquire(timeout=30)
    assert not asked.acquire(blocking=False)
    free.set()
    made._deadline = 30.0
    assert made._pending is not None
    await asyncio.wait_for(asyncio.shield(made._pending), 30)
    assert (await view_of(made)).filesystems
    assert len(caplog.records) == 1


async def test_switched_off_reads_nothing(clock: ManualClock, tmp_path: Path) -> None:
    assert await collector(clock, tmp_path, tmp_path, enabled=False).read(RUNNING) == Unknown("host.enabled is false")


FULL = HostView(
    at=1000.0,
    shm_size_bytes=100,
    shm_used_bytes=40,
    filesystems=(("/", 7, 10),),
    memory_usage_bytes=8,
    memory_working_set_bytes=6,
    memory_limit_bytes=16,
    oom_kills=1,
    cpu_waiting_seconds=2.5,
    cpu_stalled_seconds=0.5,
    cpu_throttled_seconds=1.5,
)


def test_samples_are_the_canonical_signals_with_their_labels() -> None:
    samples = host_samples(FULL, 1001.0, 5.0, "process", "vllm")
    for sample in samples:
        values = dict(sample.labels)
        assert set(values) - {"__name__"} == set(SIGNALS[values["__name__"]].labels)
    assert Sample(labels("dsobs_host_shm_used_ratio"), 0.4) in samples
    assert Sample(labels("dsobs_host_filesystem_avail_bytes", mountpoint="/"), 7.0) in samples
    waiting = labels("dsobs_container_cpu_pressure_waiting_seconds_total", runtime="process", name="vllm")
    assert Sample(waiting, 2.5) in samples
    names = {
        name for name in SIGNALS if name.startswith(("dsobs_host_", "dsobs_container_memory", "dsobs_container_cpu_"))
    }
    assert names - {dict(sample.labels)["__name__"] for sample in samples} == {"dsobs_container_cpu_seconds_total"}


def test_what_is_unknown_or_old_has_no_sample() -> None:
    assert host_samples(HostView(at=1000.0), 1000.0, 5.0, "process", "vllm") == []
    assert host_samples(Unknown("off"), 1000.0, 5.0, "process", "vllm") == []
    assert host_samples(FULL, 1000.0 + STALE_SECONDS + 1.0, 5.0, "process", "vllm") == []


def test_a_view_survives_the_flight_recorder() -> None:
    record = record_of(Observation(at=1000.0, scrape=Scrape(1000.0, 0.1), host=FULL), None, None)
    assert host_of(json.loads(json.dumps(record))) == FULL
    assert host_of({"host": {"at": 1.0, "filesystems": "odd"}}) is None
    assert host_of({}) is None
