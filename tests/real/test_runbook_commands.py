"""Every command of every runbook, run once as it stands there, beside a dsobs that has just repaired a hang.

Only places differ: ports, the state directory, the folder of logs, PID. By kind:

- `dsobs`: its own `main`, in the settings of that dsobs
- `curl`, `df`, `ls`, `du`, `ps`, `top`, `cat`, `dmesg`: this machine's
- `docker`: a real daemon with containers `vllm` and `dsobs`
- `amtool`: the real one, with a real Alertmanager
- `nvidia-smi`, `lspci`, `journalctl`, `systemctl`: there is no card and no systemd here, so that a stand-in takes the
  options that their manuals have, and refuses all others
"""

import asyncio
import os
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from dsobs.cli import main
from tests.acceptance.scene import SIMULATOR, Scene, scene
from tests.docs.test_docs import blocks
from tests.real.docker import Dockerd
from tests.real.prometheus import tool
from tests.real.test_alertmanager import QUIET, alertmanager, until_ready

pytestmark = [pytest.mark.real("servers"), pytest.mark.asyncio(loop_scope="module")]
TOKEN = "a-token"
STAND_IN = """\
#!/bin/bash
words="$*"
while IFS= read -r allowed; do
  [[ "$words" =~ ^($allowed)$ ]] && { echo "$0 $words"; exit 0; }
done <<'END'
%s
END
echo "$0: no such option: $words" >&2
exit 2
"""
_SECTION = "(MEMORY|UTILIZATION|ECC|TEMPERATURE|POWER|CLOCK|COMPUTE|PIDS|PERFORMANCE|PAGE_RETIREMENT|ROW_REMAPPER)"
_FIELD = "(timestamp|gpu_name|gpu_uuid|pid|process_name|name|used_memory|used_gpu_memory)"
STAND_INS = {
    # nvidia-smi -h; nvidia-smi nvlink -h; nvidia-smi topo -h; nvidia-smi --help-query-compute-apps
    "nvidia-smi": (
        "",
        "-q",
        f"-q -d {_SECTION}(,{_SECTION})*",
        f"--query-compute-apps={_FIELD}(,{_FIELD})* --format=csv",
        "nvlink --errorcounters",
        "topo -m",
    ),
    "lspci": ("",),
    "journalctl": ("-u [a-z]+ -n [0-9]+",),
    "systemctl": ("status [a-z]+",),
}
"""Program → its words, as patterns, by the manuals of nvidia-smi, lspci(8), journalctl(1) and systemctl(1)."""


def lines() -> list[str]:
    """Of all runbooks, each once."""
    found = [block for block in blocks() if block.page.parent.name == "runbooks" and block.language == "sh"]
    return sorted({line for block in found for line in block.text.replace("\\\n", " ").splitlines()})


@dataclass
class Stage:
    """Where they are run."""

    here: Scene
    state: Path
    logs: Path
    alertmanager: str
    environ: dict[str, str]

    def placed(self, line: str) -> str:
        """The line with the places that it has here."""
        for there, place in (
            ("127.0.0.1:9940", f"127.0.0.1:{self.here.api}"),
            ("127.0.0.1:8000", f"127.0.0.1:{self.here.port}"),
            ("http://127.0.0.1:9093", self.alertmanager),
            ("/var/lib/dsobs", str(self.state)),
            ("/var/log/vllm", str(self.logs)),
            (" PID", f" {self.here.engine_pid}"),
            ("--max-depth=2 /", f"--max-depth=2 {self.here.folder}"),
        ):
            line = line.replace(there, place)
        if not Path("/sys/fs/cgroup/cpu.pressure").exists():
            # The machine's own, in the same form: here is no cgroup v2.
            line = line.replace("/sys/fs/cgroup/cpu.pressure", "/proc/pressure/cpu")
        return line


@pytest.fixture(scope="module")
def docker() -> Iterator[Dockerd]:
    """With a container of each name that runbooks use."""
    with Dockerd() as daemon:
        for name in ("vllm", "dsobs"):
            daemon.run(name, "sh", "-c", f"echo {name} is up; exec sleep 600")
        yield daemon


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, docker: Dockerd) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("runbooks")
    logs, programs, state = folder / "vllm", folder / "bin", folder / "state"
    logs.mkdir()
    programs.mkdir()
    (logs / "vllm.log").write_text("line\n")
    for name, allowed in STAND_INS.items():
        (programs / name).write_text(STAND_IN % "\n".join(allowed))
        (programs / name).chmod(0o755)
    (programs / "amtool").symlink_to(tool("amtool"))
    async with scene(folder) as here:
        with alertmanager(folder / "alertmanager", QUIET) as url:
            await here.start_engine(*SIMULATOR)
            await here.start_dsobs(
                logs__files=f"plain:{logs}/*.log", api__control_token="env:TEST_TOKEN", environ={"TEST_TOKEN": TOKEN}
            )
            await here.start_load()
            await here.until_working()
            await here.stop_at_work()
            await here.until(lambda: here.happened("verified"), 240, "the hang is repaired")
            await until_ready(url, here.session)
            (folder / "dsobs.yaml").write_text("api: {control_token: env:TEST_TOKEN}\n")
            yield Stage(
                here,
                state,
                logs,
                url,
                {
                    "TEST_TOKEN": TOKEN,
                    "DSOBS_API__LISTEN": f"127.0.0.1:{here.api}",
                    "DSOBS_STATE__DIRECTORY": str(state),
                    "DSOBS_NOTIFIERS__WEBHOOK__URL": here.receiver,
                    "DOCKER_HOST": docker.host,
                    "PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin",
                },
            )


async def ran(stage: Stage, line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What went wrong; empty: nothing did."""
    if line.startswith("dsobs "):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(stage.here.folder)
            for name, value in stage.environ.items():
                patch.setenv(name, value)
            try:
                status = await asyncio.to_thread(main, shlex.split(line, comments=True)[1:])
            except SystemExit as end:
                status = int(end.code or 0)
        told = capsys.readouterr()
        return f"{line}: {status}: {told.err}" if status else ""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f'{stage.placed(line)}\nstatus=("${{PIPESTATUS[@]}}")\necho "${{status[@]}}" >&2'),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=stage.here.folder,
        env={**os.environ, **stage.environ},
    )
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    *_, statuses = errors.decode().splitlines()
    for command, ended in zip(line.split(" | "), statuses.split(), strict=True):
        # grep: 1 is nothing found. A command before `head`: it had more to say.
        fine = ("0", "1") if command.startswith("grep ") else ("0", "141") if "| head" in line else ("0",)
        if ended not in fine:
            return f"{line}: {statuses}: {errors.decode()[-500:]}"
    return "" if out or "grep " in line else f"{line}: printed nothing"


async def test_every_command_of_every_runbook_runs(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    told = lines()
    wrong = [problem for line in told if (problem := await ran(stage, line, capsys))]
    kinds: dict[str, int] = {}
    for line in told:
        kinds[line.split()[0]] = kinds.get(line.split()[0], 0) + 1
    print(f"{len(told)} commands: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    assert wrong == []
    silenced = {match[1] for line in told if (match := re.match(r"dsobs silence add alertname=(\w+) ", line))}
    assert len(silenced) > 50
    async with stage.here.session.get(f"http://127.0.0.1:{stage.here.api}/api/v1/silences") as answer:
        held = {matcher for silence in (await answer.json())["data"] for matcher in silence["matchers"]}
    assert {matcher.partition("=")[2].strip('"') for matcher in held} == silenced


@pytest.mark.parametrize(
    "line",
    [
        "nvidia-smi --query",
        "nvidia-smi -q -d NOTHING",
        "docker logs --tail 50 another",
        "curl --fail http://127.0.0.1:9940/api/v1/nothing",
        "dsobs incidents --nothing",
        "ls -la /var/lib/dsobs/nothing",
    ],
)
async def test_a_command_that_is_wrong_is_found(stage: Stage, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ran(stage, line, capsys)
