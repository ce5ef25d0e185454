"""`dsobs k8s inject`: result on stdout, difference and remarks on stderr, exit status."""

import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from dsobs.cli import main
from dsobs.cli.exit_codes import ExitCode

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - name: engine  # ours
    image: vllm/vllm-openai:v0.12.0
    args: [--model, m]
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "pod.yaml"
    path.write_text(POD)
    return path


def test_result_goes_to_stdout_and_what_is_said_to_stderr(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["k8s", "inject", str(manifest)]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert [one["name"] for one in yaml.safe_load(out)["spec"]["initContainers"]] == ["dsobs"]
    assert "\n+  initContainers:\n+  - name: dsobs\n" in err
    assert err.startswith(f"--- {manifest}\n")
    assert (
        err.splitlines()[-1] == f"dsobs: {manifest}:6: Pod/p: dsobs watches container engine at http://127.0.0.1:8000"
    )
    assert "  - name: engine  # ours\n" in out


def test_stdin_is_read_for_a_dash_and_its_line_ends_stay(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    given = POD.replace("\n", "\r\n").encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert main(["k8s", "inject", "-"]) == ExitCode.DONE
    out = capsysbinary.readouterr().out
    assert out.count(b"\n") == out.count(b"\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(out)))
    assert main(["k8s", "inject", "--remove", "-"]) == ExitCode.DONE
    assert capsysbinary.readouterr().out == given


def test_settings_of_the_sidecar_are_variables(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--set", "remediation.mode=enforce", "--set", "gpu.source=http://$(HOST_IP):9941", "--no-diff"]
    assert main(["k8s", "inject", str(manifest), *flags]) == ExitCode.DONE
    out, err = capsys.readouterr()
    env = {one["name"]: one.get("value") for one in yaml.safe_load(out)["spec"]["initContainers"][0]["env"]}
    assert env["DSOBS_REMEDIATION__MODE"] == "enforce"
    assert env["DSOBS_GPU__SOURCE"] == "http://$(HOST_IP):9941"
    assert "---" not in err


def test_wrong_setting_is_said_and_nothing_done(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--set", "remediation.mode=enforced", "--set", "targt.url=x"]
    assert main(["k8s", "inject", str(manifest), *flags]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "'enforced' is none of observe, enforce; did you mean enforce?" in err
    assert "did you mean target.url" in err


def test_bad_manifest_gives_status_2_every_problem_and_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(POD + "  restartPolicy: Never\n---\nnot: kubernetes\n")
    assert main(["k8s", "inject", str(path)]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[1] for line in err.splitlines()] == [f"{path}:9", f"{path}:11"]


def test_json_says_the_same_to_programs(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["k8s", "inject", "--json", str(manifest)]) == ExitCode.DONE
    assert [json.loads(line) for line in capsys.readouterr().err.splitlines()] == [
        {
            "kind": "remark",
            "file": str(manifest),
            "line": 6,
            "workload": "Pod/p",
            "message": "dsobs watches container engine at http://127.0.0.1:8000",
        }
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.yaml", None, "can't be read (No such file or directory); give a manifest"),
        (".", None, "is a directory; give a manifest"),
        ("latin.yaml", b"a: 1\nb: \xff\n", ":2: is not UTF-8; save it as UTF-8 text"),
    ],
)
def test_file_that_can_not_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert main(["k8s", "inject", str(path)]) == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_port_that_is_none_is_refused(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["k8s", "inject", "--port=0", str(manifest)]) == ExitCode.USAGE
    assert "'0' is no port; write 1 to 65535" in capsys.readouterr().err
