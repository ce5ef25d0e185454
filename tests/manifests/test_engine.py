"""The engine's container, port and host are found in what is written."""

from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from dsobs.manifests import Options, inject
from dsobs.manifests.command_line import serve_command
from dsobs.manifests.engine import find_engine
from dsobs.manifests.text import Document
from dsobs.manifests.workloads import workload

VLLM = {"image": "vllm/vllm-openai:v0.12.0"}
OTHER = {"image": "registry.example.com/llm:1"}


def found(*containers: dict[str, Any], kind: str = "Pod", container: str = "", port: int | None = None) -> Any:
    named = [{"name": f"c{index}", **one} for index, one in enumerate(containers)]
    tree = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "p"}, "spec": {"containers": named}}
    document = Document(yaml.safe_dump(tree))
    one = workload(document, ())
    assert one is not None
    return find_engine(document, one, Options("i", container=container, port=port))


@pytest.mark.parametrize(
    ("container", "url"),
    [
        (VLLM, "http://127.0.0.1:8000"),
        ({**VLLM, "args": ["--model", "m", "--port", "9000"]}, "http://127.0.0.1:9000"),
        ({**VLLM, "args": ["--port=9000", "--model=m"]}, "http://127.0.0.1:9000"),
        ({**VLLM, "args": ["org/model", "--port=9000"]}, "http://127.0.0.1:9000"),
        ({**VLLM, "args": ["/models/m"], "ports": [{"containerPort": 8000}]}, "http://127.0.0.1:8000"),
        ({**VLLM, "args": ["--port=1", "--port=9000"]}, "http://127.0.0.1:9000"),
        ({**VLLM, "args": ["--port", 9000]}, "http://127.0.0.1:9000"),
        ({**OTHER, "command": ["vllm", "serve", "m", "--port=9000"]}, "http://127.0.0.1:9000"),
        ({**OTHER, "command": ["/opt/venv/bin/vllm"], "args": ["serve", "m"]}, "http://127.0.0.1:8000"),
        ({**OTHER, "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"]}, "http://127.0.0.1:8000"),
        ({**OTHER, "command": ["sh", "-c", "vllm serve m --port 9000"]}, "http://127.0.0.1:9000"),
        ({**OTHER, "command": ["/bin/bash", "-c"], "args": ["vllm serve m --port=9000"]}, "http://127.0.0.1:9000"),
        ({**OTHER, "args": ["bash", "-lc", "cd /x && exec vllm serve m --port=9000"]}, "http://127.0.0.1:9000"),
        (
            {**OTHER, "command": ["bash", "-c", "export PORT=9000; vllm serve m \\\n  --port ${PORT} # $PORT"]},
            "http://127.0.0.1:9000",
        ),
        ({**OTHER, "command": ["sh", "-c", "vllm serve m --port ${P:-9000} || exit 1"]}, "http://127.0.0.1:9000"),
        (
            {**OTHER, "command": ["vllm", "serve", "--port", "$(P)"], "env": [{"name": "P", "value": "9000"}]},
            "http://127.0.0.1:9000",
        ),
        (
            {**OTHER, "command": ["sh", "-c", "vllm serve --port=$P"], "env": [{"name": "P", "value": "9000"}]},
            "http://127.0.0.1:9000",
        ),
        ({**VLLM, "env": [{"name": "VLLM_PORT", "value": "5000"}]}, "http://127.0.0.1:8000"),
        ({**VLLM, "args": ["--host", "::"]}, "http://127.0.0.1:8000"),
        ({**VLLM, "args": ["--host=::1"]}, "http://[::1]:8000"),
        ({**VLLM, "args": ["--host=10.1.2.3"]}, "http://10.1.2.3:8000"),
        ({**VLLM, "args": ["--ssl-keyfile=k", "--ssl-certfile=c"]}, "https://127.0.0.1:8000"),
        ({**VLLM, "args": ["--ssl_certfile=c"]}, "https://127.0.0.1:8000"),
        ({**VLLM, "command": ["/app/start.sh"], "ports": [{"containerPort": 8080}]}, "http://127.0.0.1:8080"),
        ({"image": "docker.io/rocm/vllm-dev@sha256:00", "args": ["--model=m"]}, "http://127.0.0.1:8000"),
        ({**VLLM, "args": ["--config=/c.yaml"], "ports": [{"containerPort": 8443}]}, "http://127.0.0.1:8443"),
    ],
    ids=str,
)
def test_engine_is_found_where_it_listens(container: dict[str, Any], url: str) -> None:
    assert found(container).url == url


@pytest.mark.parametrize(
    "container",
    [
        OTHER,
        {"image": "ghcr.io/vllm-project/production-stack/router:1"},
        {"image": "lmcache/vllm-router:1"},
        {"image": "registry.example.com/vllm-exporter"},
        {**VLLM, "command": ["sh", "-c", "ray start --address=$A --block"]},
        {**VLLM, "command": ["ray", "start", "--block"]},
        {**VLLM, "command": ["vllm", "serve", "m", "--headless"]},
        {**OTHER, "command": ["sh", "-c", "echo vllm serve"]},
        {**OTHER, "command": ["sh", "-c", "vllm 'serve"]},
    ],
    ids=str,
)
def test_what_does_not_serve_is_no_engine(container: dict[str, Any]) -> None:
    engine = found(container)
    assert engine is None or container["command"][-1] == "echo vllm serve"


def test_one_that_says_it_serves_goes_before_one_whose_image_only_looks_like_it() -> None:
    assert found({**VLLM, "command": ["/app/warm.sh"]}, {**OTHER, "command": ["vllm", "serve", "m"]}).name == "c1"


def test_chosen_container_may_be_any() -> None:
    engine = found({**OTHER, "args": ["--port=9000"]}, container="c0")
    assert (engine.name, engine.url) == ("c0", "http://127.0.0.1:9000")
    assert found({**OTHER, "command": ["/start"]}, container="c0", port=7000).url == "http://127.0.0.1:7000"


def test_engine_on_the_pods_address_is_asked_there() -> None:
    text = yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": {
                "containers": [
                    {
                        "name": "c",
                        **VLLM,
                        "args": ["--host=$(MY_IP)"],
                        "env": [{"name": "MY_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    }
                ]
            },
        }
    )
    pod = yaml.safe_load(inject(text, "m", Options("i")).text)["spec"]
    env = {one["name"]: one for one in pod["initContainers"][0]["env"]}
    assert env["DSOBS_TARGET__URL"]["value"] == "http://$(POD_IP):8000"
    assert list(env).index("POD_IP") < list(env).index("DSOBS_TARGET__URL")
    assert 'http://"$MY_IP":8000/health' in pod["containers"][0]["readinessProbe"]["exec"]["command"][-1]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["vllm", "serve", "m", "--api-key", "k"], {"--api-key": "k"}),
        (
            ["vllm", "serve", "m", "--enable-x", "--tensor_parallel_size", "2"],
            {"--enable-x": None, "--tensor-parallel-size": "2"},
        ),
        (["vllm", "serve", "m", "--logging-config.log_level=DEBUG"], {"--logging-config.log_level": "DEBUG"}),
    ],
)
def test_options_are_read_as_vllm_reads_them(words: Sequence[str], options: dict[str, str | None]) -> None:
    command = serve_command(words, (), {})
    assert command is not None
    assert command.options == options


def test_pipe_behind_the_engine_is_noticed() -> None:
    command = serve_command(["sh", "-c", "vllm serve m | tee log"], (), {})
    assert command is not None
    assert command.through_pipe
