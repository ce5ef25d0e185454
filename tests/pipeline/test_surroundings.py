"""What is read around the engine comes out as canonical signals: cards, strangers on them, host and cgroup."""

from dataclasses import replace
from pathlib import Path

from dsobs.collectors.exchange import open_session
from dsobs.config import Config
from dsobs.config.models import Gpu as GpuSettings
from dsobs.config.models import Host, State, Target
from dsobs.model.clock import ManualClock
from dsobs.model.observation import Gpu, GpuProcess, HostView, Observation, RuntimeView, Unknown
from dsobs.model.samples import labels
from dsobs.pipeline import Memory, Pipeline, rule_groups
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Ledger
from dsobs.rules.evaluator import Evaluator
from dsobs.series.exposition import Parser
from dsobs.series.store import Store
from dsobs.sidecar.latest import Latest
from dsobs.sidecar.watching import Watch
from dsobs.simulator.process import free_port

RUNNING = RuntimeView("process", "vllm", running=True, pids=(776,))
CARD = Gpu(0, "GPU-a", processes=(GpuProcess(776, 30), GpuProcess(901, 12)), xids=(31,))


class Turns:
    def __init__(self, *, seen: bool = False) -> None:
        config, store = Config(), Store()
        self._pipeline = Pipeline(config, store, Evaluator(rule_groups(config), store), memory=Memory(seen=seen))

    def after(self, obs: Observation) -> dict[tuple[tuple[str, str], ...], float]:
        self._pipeline.turn(obs, Ledger(), Switches())
        return {sample.labels: sample.value for sample in self._pipeline.samples()}


def test_cards_and_strangers_on_them_are_told() -> None:
    turns = Turns()
    turns.after(Observation(at=1000.0, gpus=(CARD,), runtime=RUNNING))
    # A count begins at 0: the turn after shows what the first reading told.
    values = turns.after(Observation(at=1001.0, gpus=(replace(CARD, xids=()),), runtime=RUNNING))
    card = {"gpu": "0", "uuid": "GPU-a"}
    assert values[labels("dsobs_gpu_foreign_memory_bytes", **card)] == 12
    assert values[labels("dsobs_gpu_process_memory_bytes", pid="901", **card)] == 12
    assert values[labels("dsobs_gpu_xid_errors_total", xid="31", reason="GPU memory page fault", **card)] == 1
    assert values[labels("dsobs_gpu_xid_last_time_seconds", xid="31", reason="GPU memory page fault", **card)] == 1000.0


def test_a_last_word_about_an_engine_that_was_never_seen_does_not_say_that_it_does_not_run() -> None:
    ended = RuntimeView("process", "vllm", running=False)
    running = labels("dsobs_container_running", runtime="process", name="vllm")
    assert Turns().after(Observation(at=1000.0, runtime=ended))[running] == 0.0
    assert running not in Turns().after(Observation(at=1000.0, runtime=replace(ended, last_word=True)))
    assert Turns(seen=True).after(Observation(at=1000.0, runtime=replace(ended, last_word=True)))[running] == 0.0


def test_host_and_cgroup_are_told_under_the_engines_name_until_they_are_old() -> None:
    turns = Turns()
    view = HostView(at=1000.0, shm_size_bytes=100, shm_used_bytes=40, memory_usage_bytes=8)
    usage = labels("dsobs_container_memory_usage_bytes", runtime="process", name="vllm")
    values = turns.after(Observation(at=1001.0, host=view, runtime=RUNNING))
    assert values[labels("dsobs_host_shm_used_ratio")] == 0.4
    assert values[usage] == 8
    assert usage not in turns.after(Observation(at=1040.0, host=view, runtime=RUNNING))
    assert usage not in turns.after(Observation(at=1041.0, host=Unknown("off"), runtime=RUNNING))


async def test_cards_are_read_as_often_as_the_setting_says_and_their_xids_told_once(tmp_path: Path) -> None:
    config = Config(
        target=Target(url=f"http://127.0.0.1:{free_port()}"),
        gpu=GpuSettings(interval=3.0),
        host=Host(enabled=False),
        state=State(directory=tmp_path),
    )
    clock, store, reads = ManualClock(1000.0), Store(), 0

    async def read() -> tuple[Gpu, ...] | Unknown:
        nonlocal reads
        reads += 1
        return (CARD,)

    pipeline = Pipeline(config, store, Evaluator(rule_groups(config), store))
    told = []
    async with open_session(config.target) as session:
        watch = Watch(config, session, clock, pipeline, Parser(), lambda: None)
        watch._gpus = Latest(read, Unknown)
        for _ in range(7):
            obs = await watch.observe(1.0)
            assert isinstance(obs.gpus, tuple)
            told.append(obs.gpus[0].xids)
            clock.advance(1.0)
        await watch.stop_asking()
        await watch.close()
    assert reads == 3
    assert told == [(31,), (), (), (31,), (), (), (31,)]
