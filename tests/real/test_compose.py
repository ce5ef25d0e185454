"""The Compose project: what it says, and a run of it, in which the simulator stands for vLLM.

Grafana, Kibana and Elasticsearch are not started: their images are not to be had without a registry. What is started is
Docker's Compose, the image of deploy/image, and the real Prometheus and Alertmanager, under the names of their images.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsobs.config import load
from tests.docs.test_docs import blocks
from tests.real import image
from tests.real.docker import Dockerd
from tests.real.prometheus import tool

pytestmark = pytest.mark.real("cluster")
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/compose"
GUIDE = ROOT / "docs/how-to/compose.md"
PROFILES = ("cpu", "nvidia")
VARIABLES = {"DOCKER_GID": "999"}


def compose(plugin: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key != "DOCKER_GID"}
    return subprocess.run(
        ["docker", "compose", *words],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**environ, **variables, "DOCKER_CONFIG": str(plugin)},
    )


@pytest.fixture(scope="module", params=PROFILES)
def services(request: pytest.FixtureRequest, plugin: Path) -> dict[str, Any]:
    """Name → service of a profile, as Compose reads them."""
    done = compose(plugin, f"--profile={request.param}", "config", "--format=json", **VARIABLES)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return {name.removesuffix(f"-{request.param}"): service for name, service in found.items()}


def test_each_profile_is_whole(services: dict[str, Any]) -> None:
    own = {"vllm", "dsobs", "logs-setup"}
    assert set(services) == own | {"prometheus", "alertmanager", "grafana", "elasticsearch", "kibana", "kibana-setup"}


def test_versions_are_pinned_and_those_of_the_tests(services: dict[str, Any]) -> None:
    for service in services.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]
    script = (ROOT / "tests/real/prometheus.sh").read_text()
    (prometheus,) = re.findall(r"^PROMETHEUS=v0\.3(\d+)\.(\d+)$", script, re.MULTILINE)
    assert services["prometheus"]["image"] == f"prom/prometheus:v3.{prometheus[0]}.{prometheus[1]}"
    (alertmanager,) = re.findall(r"^ALERTMANAGER=(\S+)$", script, re.MULTILINE)
    assert services["alertmanager"]["image"] == f"prom/alertmanager:{alertmanager}"
    assert services["dsobs"]["image"] == services["logs-setup"]["image"] == image.IMAGE


def test_ports_are_open_on_this_machine_only(services: dict[str, Any]) -> None:
    opened = [port for service in services.values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in opened} == {"127.0.0.1"}
    assert len({port["published"] for port in opened}) == len(opened)


def test_engine_starts_after_dsobs_and_so_stops_before_it(services: dict[str, Any]) -> None:
    (before,) = services["vllm"]["depends_on"]
    assert before.startswith("dsobs-")
    assert "mem_limit" in services["dsobs"]
    assert not {"cpus", "cpu_quota"} & set(services["dsobs"])


def test_cards_go_to_the_engine_and_to_dsobs_of_nvidia_alone(plugin: Path) -> None:
    def reserved(profile: str) -> set[str]:
        done = compose(plugin, f"--profile={profile}", "config", "--format=json", **VARIABLES)
        found = json.loads(done.stdout)["services"]
        return {name for name, service in found.items() if "devices" in str(service.get("deploy"))}

    assert reserved("nvidia") == {"vllm-nvidia", "dsobs-nvidia"}
    assert reserved("cpu") == set()


def test_group_of_the_socket_that_is_missing_is_one_clear_line(plugin: Path) -> None:
    done = compose(plugin, "--profile=cpu", "config")
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert "variable DOCKER_GID is missing a value: put it into .env" in line


def test_files_of_the_project_are_ones_that_their_readers_take() -> None:
    config = load(FOLDER / "dsobs.yaml", {}, {})
    assert config.runtime.container == "vllm"
    words = [str(tool("promtool")), "check", "config", "--syntax-only", "prometheus.yaml"]
    done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sources = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/dsobs.yaml").read_text())["datasources"]
    assert {source["type"] for source in sources} == {"prometheus", "alertmanager", "elasticsearch"}
    logging = json.loads((FOLDER / "engine-log/logging.json").read_text())
    assert f"vllm-json:{logging['handlers']['file']['filename']}*" in config.logs.files


# A run


def commands() -> list[str]:
    """The guide's, a line each."""
    found = [block for block in blocks() if block.page == GUIDE and block.language == "sh"]
    return [line for block in found for line in block.text.splitlines()]


def image_of(binary: Path, *arguments: str) -> tuple[bytes, list[str]]:
    """A tar with this static binary alone, and what `docker import` is told of it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(binary, arcname=f"bin/{binary.name}")
    changes = [f"ENTRYPOINT {json.dumps([f'/bin/{binary.name}'])}", f"CMD {json.dumps(list(arguments))}"]
    return packed.getvalue(), [f"--change={change}" for change in changes]


class Project:
    """A copy of the project, in a Docker whose network leads nowhere."""

    def __init__(self, folder: Path, plugin: Path, daemon: Dockerd) -> None:
        self.folder = folder / "deploy/compose"
        self.daemon = daemon
        self.docker_config = plugin
        shutil.copytree(FOLDER, self.folder)
        shutil.copytree(ROOT / "alerts", folder / "alerts")
        elsewhere = "\n".join(
            f"  {name}: {{profiles: !override [elsewhere]}}"
            for name in ("grafana", "kibana", "kibana-setup", "elasticsearch", "logs-setup")
        )
        (self.folder / "test.yaml").write_text(
            "services:\n"
            f"{elsewhere}\n"
            "  vllm-cpu:\n"
            f"    image: {image.IMAGE}\n"
            "    entrypoint: [python3, -m, dsobs.simulator, --host=0.0.0.0, --port=8000]\n"
            "    command: !reset []\n"
            "    stop_grace_period: 5s\n"
            "  dsobs-cpu:\n"
            "    depends_on: !override [alertmanager]\n"
            f"    volumes: ['{daemon.socket}:/var/run/docker.sock']\n"
            # A minute of patience would be long in a test.
            "    environment: {DSOBS_HANG__IDLE_AFTER: 5s, DSOBS_HANG__IDLE_PROBE_INTERVAL: 5s}\n"
        )

    def __call__(self, line: str) -> str:
        """What a line of the guide printed, both streams; AssertionError where it fails."""
        done = subprocess.run(
            ["bash", "-euc", line.replace("/var/run/docker.sock", str(self.daemon.socket))],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
            env={
                **{key: value for key, value in os.environ.items() if key != "DOCKER_GID"},
                "DOCKER_HOST": self.daemon.host,
                "DOCKER_CONFIG": str(self.docker_config),
                "COMPOSE_FILE": "compose.yaml:test.yaml",
            },
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}"
        return done.stdout

    def asked(self, url: str) -> Any:
        """JSON of a page, asked from within the project's network; None where nothing answers yet."""
        code = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=5).read().decode())"
        words = ("compose", "--profile=cpu", "exec", "-T", "dsobs-cpu", "python3", "-c", code)
        try:
            return json.loads(self(f"docker {shlex.join(words)}"))
        except AssertionError:
            return None

    def wait(self, what: str, check: Any, seconds: float) -> Any:
        """What `check` returns once that is true."""
        deadline = time.monotonic() + seconds
        while not (found := check()):
            if time.monotonic() > deadline:
                pytest.fail(f"no {what}:\n{self('docker compose --profile cpu logs --tail 30')}")
            time.sleep(0.5)
        return found


@pytest.fixture
def project(plugin: Path, image_daemon: Dockerd, tmp_path: Path) -> Iterator[Project]:
    with Dockerd(private_network=True) as daemon:
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            image.docker(image_daemon, "save", f"--output={archive.name}", image.IMAGE)
            image.docker(daemon, "load", f"--input={archive.name}")
        text = (FOLDER / "compose.yaml").read_text()
        for name, arguments in {
            "prometheus": ("--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"),
            "alertmanager": ("--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager"),
        }.items():
            (tag,) = re.findall(rf"image: (prom/{name}:\S+)", text)
            packed, changes = image_of(tool("server" if name == "prometheus" else name), *arguments)
            daemon.command("import", *changes, "-", tag, stdin=packed)
        yield Project(tmp_path, plugin, daemon)


def test_guide_leads_to_a_hang_that_is_told_and_repaired_and_away_again(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = commands()
    assert lines[0] == "cd deploy/compose"
    up = next(n for n, line in enumerate(lines) if " up " in line)
    for line in lines[1 : up + 1]:
        project(line)
    status = project.wait("status", lambda: project.asked("http://dsobs:9940/api/v1/status"), 180)
    assert status
    targets = "http://prometheus:9090/api/v1/query?query=up"

    def scraped() -> bool:
        found = (project.asked(targets) or {"data": {"result": []}})["data"]["result"]
        return {each["metric"]["job"]: each["value"][1] for each in found} == {"dsobs": "1", "vllm": "1"}

    project.wait("scrapes of Prometheus", scraped, 180)
    began = project("docker inspect --format '{{.State.StartedAt}}' vllm")
    for line in lines[up + 1 :]:
        printed = project(line)
        if "STOP" in line:
            stopped = time.monotonic()
            project.wait("EngineHung at Alertmanager", lambda: hung(project), 120)
            told = time.monotonic()
            project.wait(
                "restart", lambda: project("docker inspect --format '{{.State.StartedAt}}' vllm") != began, 120
            )
            with capsys.disabled():
                print(f"\ncompose: stop to EngineHung at Alertmanager {told - stopped:.1f} s")
        elif " logs " in line:
            assert "EngineHung" in printed
    assert project("docker ps --all --quiet") == project("docker volume ls --quiet") == ""


def hung(project: Project) -> bool:
    alerts = project.asked("http://alertmanager:9093/api/v2/alerts") or []
    return "EngineHung" in {alert["labels"]["alertname"] for alert in alerts}
