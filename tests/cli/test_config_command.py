import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dsobs.cli import main
from dsobs.cli.exit_codes import ExitCode
from dsobs.config import Config, load
from dsobs.config.models import Notifiers
from dsobs.config.reference import schema


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("DSOBS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dsobs.yaml"
    path.write_text(
        "target:\n  name: gpu-7\n  api_key: env:API_KEY\n  scrape_interval: 2s\n"
        "notifiers:\n  pagerduty:\n    routing_key: env:PAGER_KEY\n"
    )
    return path


def validate(value: Any) -> None:
    jsonschema.Draft202012Validator(schema()).validate(value)


def test_check_says_all_problems_one_a_line_and_exits_2(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSOBS_TARGET_URL", "x")
    file.write_text("target:\n  ulr: x\ngpu: {enabled: 5}\n")
    assert main(["config", "check", str(file), "--set", "api.listen=x"]) == ExitCode.USAGE
    assert capsys.readouterr() == (
        "",
        f"dsobs: {file}:2: target.ulr: there is no such setting; did you mean target.url?\n"
        f"dsobs: {file}:3: gpu.enabled: '5' is neither true nor false; write one of them\n"
        "dsobs: DSOBS_TARGET_URL: is no setting of dsobs; did you mean DSOBS_TARGET__URL?\n"
        "dsobs: --set api.listen: 'x' is no address and port; write 127.0.0.1:9940\n",
    )


def test_check_reports_secrets_that_are_not_there_and_names_nothing_registered(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAGER_KEY", raising=False)
    monkeypatch.setenv("API_KEY", "hunter2")
    assert main(["config", "check", str(file), "--json", "--set", "target.engine=vlm"]) == ExitCode.USAGE
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "where": f"{file}:7",
        "name": "notifiers.pagerduty.routing_key",
        "message": "secret environment variable PAGER_KEY is not set; create it or point to another",
    }
    assert (second["where"], second["name"]) == ("--set target.engine", "target.engine")
    assert second["message"].endswith("did you mean vllm?")


def test_check_says_what_is_missing_beside_settings_that_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "dsobs.yaml"
    file.write_text(
        "notifiers:\n  pagerdutty: {}\n  webhook: {url: ftp://x}\n  pagerduty: {routing_key: key}\n"
        "target: {ca_file: gone.pem, engine: vlm}\n"
    )
    assert main(["config", "check", str(file)]) == ExitCode.USAGE
    told = [line.removeprefix(f"dsobs: {file}:").split(":")[:2] for line in capsys.readouterr().err.splitlines()]
    assert sorted(told) == [
        ["2", " notifiers.pagerdutty"],
        ["3", " notifiers.webhook.url"],
        ["4", " notifiers.pagerduty.routing_key"],
        ["5", " target.ca_file"],
        ["5", " target.engine"],
    ]


def test_check_of_right_settings_exits_0(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGER_KEY", "k" * 32)
    monkeypatch.setenv("API_KEY", "hunter2")
    monkeypatch.setenv("DSOBS_CONFIG", str(file))
    assert main(["config", "check"]) == ExitCode.DONE
    assert capsys.readouterr() == ("the settings are right\n", "")


def test_check_says_everything_that_is_wrong_with_the_files_that_the_settings_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules, inhibition, file = tmp_path / "own.yaml", tmp_path / "am.yaml", tmp_path / "dsobs.yaml"
    rules.write_text(
        "groups:\n- name: g\n  rules:\n  - {alert: A, expr: 'sum('}\n  - {alert: B, expr: up, for: soon}\n"
    )
    inhibition.write_text("inhibit_rules: 5\n")
    file.write_text("rules: {files: [own.yaml, gone.yaml]}\ninhibition: {files: [am.yaml]}\ngpu: {enabled: true}\n")
    assert main(["config", "check", str(file)]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == f"dsobs: {file}:1: rules.files: there is no file {tmp_path}/gone.yaml; write one that exists"
    assert lines[1].startswith(f'dsobs: {rules}:4: group "g": rule "A": expr: ')
    assert lines[2].startswith(f'dsobs: {rules}:5: group "g": rule "B": for: ')
    assert lines[3:] == [f"dsobs: {inhibition}:1: inhibit_rules: must be a list"]
    assert main(["run", "--config", str(file), "--listen", "127.0.0.1:0"]) == ExitCode.USAGE
    told = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "gone.yaml" not in line] == [line for line in told if "gone.yaml" not in line]
    assert any("gone.yaml" in line for line in told)


@pytest.mark.parametrize("command", [["run"], ["config", "check"]], ids=" ".join)
def test_bad_settings_hide_no_bad_rules(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dsobs.yaml"
    file.write_text(
        "rules: {files: [own.yaml]}\ninhibition: {files: [am.yaml]}\nremediation: {mode: maybe}\nhang: {prob: x}\n"
    )
    (tmp_path / "own.yaml").write_text("groups: [{name: g, rules: [{alert: A, expr: 'up =='}]}]\n")
    (tmp_path / "am.yaml").write_text("inhibit_rules: [{source_matchers: [], target_matchers: [a=b]}]\n")
    assert main([*command, "--config", str(file)]) == ExitCode.USAGE
    said = capsys.readouterr().err
    for where in ("dsobs.yaml:3: remediation.mode", "dsobs.yaml:4: hang.prob", "own.yaml:1: ", "am.yaml:1: "):
        assert said.count(where) == 1


def test_show_gives_every_setting_its_origin_and_no_secret(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSOBS_API__CONTROL_TOKEN", "hunter2")
    monkeypatch.setenv("API_KEY", "hunter2")
    assert main(["config", "show", "--config", str(file), "--origin", "--mode", "enforce"]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "hunter2" not in out
    assert f"  api_key: env:API_KEY  # {file}:3\n" in out.replace("'", "")
    assert "  control_token: '********'  # DSOBS_API__CONTROL_TOKEN\n" in out
    assert f"  scrape_interval: 2s  # {file}:4\n" in out
    assert f"    routing_key: 'env:PAGER_KEY'  # {file}:7\n" in out
    assert "  mode: enforce  # --mode\n" in out
    assert "  webhook: null\n" in out
    assert "  for: 5m\n" in yaml.safe_dump(yaml.safe_load(out))


def test_what_show_prints_is_a_settings_file_that_means_the_same(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text() + "gpu: {devices: ['0', GPU-1]}\n")
    assert main(["config", "show", "--config", str(file)]) == ExitCode.DONE
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load(again, {}, {}) == load(file, {}, {})
    validate(yaml.safe_load(again.read_text()))


def test_show_as_json_is_one_object(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--config", str(file), "--json", "--origin"]) == ExitCode.DONE
    (line,) = capsys.readouterr().out.splitlines()
    shown = json.loads(line)
    assert shown["settings"]["target"]["api_key"] == "env:API_KEY"
    assert shown["origins"]["target.name"] == f"{file}:2"
    validate(shown["settings"])


def test_the_schema_is_one_and_takes_durations_as_text_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == ExitCode.DONE
    printed = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    validate({"target": {"scrape_interval": "1m30s", "scrape_timeout": 5}, "rules": {"gpu_memory": {"for": 0}}})
    validate(json.loads(Config().model_dump_json(by_alias=True, exclude_none=True)))
    refused: tuple[dict[str, Any], ...] = (
        {"target": {"ulr": "x"}},
        {"target": {"scrape_interval": "5 minutes"}},
        {"target": {"scrape_interval": 0}},
        {"target": {"url": "http://me:hunter2@h"}},
        {"remediation": {"mode": "repair"}},
        {"notifiers": {"pagerduty": {}}},
    )
    for wrong in refused:
        with pytest.raises(jsonschema.ValidationError):
            validate(wrong)


def test_every_setting_is_documented_in_the_schema() -> None:
    made = schema()
    parts = [made, *made["$defs"].values()]
    undocumented = [
        name for part in parts for name, value in part.get("properties", {}).items() if not value.get("description")
    ]
    # A section says what it is for in its own description.
    sections = set(Config.model_fields)
    nested = {
        "gpu_memory",
        "latency_p99",
        "restarts",
        "objectives",
        *Notifiers.model_fields,
        "elasticsearch",
        "file",
        "transform",
        "redact",
        "edge",
    }
    assert set(undocumented) <= sections | nested


def test_set_without_a_value_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--set", "target.url"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("dsobs: --set takes NAME=VALUE")


def test_show_takes_the_file_in_either_form(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", str(file)]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert main(["config", "show", "--config", str(file)]) == ExitCode.DONE
    assert capsys.readouterr().out == shown
    assert "name: gpu-7" in shown


@pytest.mark.parametrize("command", ["check", "show"])
def test_the_file_is_given_once(file: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", command, str(file), "--config", str(file)]) == ExitCode.USAGE
    assert "give the file once" in capsys.readouterr().err


def test_show_of_bad_settings_says_what_is_wrong_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--url", "h:1", "--mode", "x"]) == ExitCode.USAGE
    assert capsys.readouterr().err.splitlines() == [
        "dsobs: --url: 'h:1' is no http:// or https:// address; write http://HOST:PORT",
        "dsobs: --mode: 'x' is none of observe, enforce; write one of them",
    ]
