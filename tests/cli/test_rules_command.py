"""`dsobs rules show | check | test | fmt`."""

import io
import json
import sys
from pathlib import Path

import pytest

from dsobs import promql
from dsobs.cli import main
from dsobs.cli.exit_codes import ExitCode
from dsobs.config import Config
from dsobs.config.models import Rules
from dsobs.promql import UnsupportedError
from dsobs.rules import shipped
from dsobs.rules.files import load_text, read

_RULES = """\
groups:
  - name: g
    interval: 15s
    rules:
      - alert: A
        expr: up  == 0
        for: 5m
        labels: {severity: page}
      - {record: 'a:b', expr: 'sum(rate(x[10m]))'}
"""
_TESTS = """\
rule_files: [r.rules.yaml]
tests:
  - name: down
    input_series: [{series: up, values: 0x9}]
    alert_rule_test:
      - {eval_time: 4m, alertname: A, exp_alerts: []}
      - {eval_time: 5m, alertname: A, exp_alerts: [{exp_labels: {severity: page}}]}
    promql_expr_test:
      - {expr: up, eval_time: 1m, exp_samples: [{labels: up, value: 1}]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r.rules.yaml").write_text(_RULES)
    (tmp_path / "r.test.yaml").write_text(_TESTS)
    return tmp_path


def _why(expression: str) -> str:
    """What the compiler says, and what to do."""
    with pytest.raises(UnsupportedError) as refused:
        promql.compile(expression)
    return f"dsobs does not support {refused.value}; write it otherwise, or leave this rule to Prometheus"


def _rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_show_prints_all_shipped_rules_with_the_settings_as_one_file_that_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objectives = "availability_target: 0.995, ttft_threshold: 1s, ttft_target: 0.95"
    (tmp_path / "dsobs.yaml").write_text(f"rules: {{objectives: {{{objectives}}}, gpu_memory: {{threshold: 0.9}}}}\n")
    assert main(["rules", "show", "--config", str(tmp_path / "dsobs.yaml")]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert err == ""
    shown = tmp_path / "all.rules.yaml"
    shown.write_text(out)
    groups, problems = read([shown])
    assert problems == []
    config = Config(
        rules=Rules.model_validate(
            {
                "objectives": {"availability_target": 0.995, "ttft_threshold": 1.0, "ttft_target": 0.95},
                "gpu_memory": {"threshold": 0.9},
            }
        )
    )
    expected = load_text([(name, shipped.render(name, config.rules, config.hang)) for name in shipped.ALL_FILE_NAMES])
    assert [(g.name, [(r.name, r.expr) for r in g.rules]) for g in groups] == [
        (g.name, [(r.name, r.expr) for r in g.rules]) for g in expected
    ]
    long = {rule.name: rule.expr for group in groups for rule in group.rules if rule.name.endswith("BudgetLong")}
    assert "1 * (1 - 0.995)" in long["AvailabilityBudgetLong"]
    assert 'le=~"1|1[.]0"' in long["TimeToFirstTokenBudgetLong"]
    assert "1 * (1 - 0.95)" in long["TimeToFirstTokenBudgetLong"]


@pytest.mark.parametrize("name", shipped.ALL_FILE_NAMES)
def test_show_of_one_file_without_settings_has_its_very_groups(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "show", name]) == ExitCode.DONE
    head, _, groups = capsys.readouterr().out.partition("groups:\n")
    assert groups == f"  # {name}\n" + shipped.source(name).partition("groups:\n")[2]
    assert head.startswith("# Shipped rules of dsobs with the settings in place")


def test_show_of_a_file_that_is_none_names_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "show", "promtheus.rules.yaml"]) == ExitCode.USAGE
    assert "no shipped rule file; there are thresholds.rules.yaml, " in capsys.readouterr().err


def test_check_of_a_folder_reads_its_rule_files_and_no_tests(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "check", str(folder)]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "rule  kind    severity  every  for  window  file",
        f"A     alert   page      15s    5m           {folder}/r.rules.yaml:5",
        f"a:b   record            15s         10m     {folder}/r.rules.yaml:9",
        "2 rules in 1 group are right",
    ]


def test_check_names_everything_that_is_wrong_with_its_expression(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = folder / "bad.rules.yml"
    bad.write_text(
        "groups:\n  - name: g\n    rules:\n      - alert: B\n        expr: sum(x\n      - alert: C\n        expr: |\n"
        "          histogram_count(x)\n          > 1\n      - {alert: D, expr: 'rate(x[1d]) > 0'}\n"
    )
    assert main(["rules", "check", str(folder)]) == ExitCode.USAGE
    assert capsys.readouterr() == (
        "",
        f'dsobs: {bad}:5: group "g": rule "B": expr: unclosed left parenthesis\n'
        "    sum(x\n"
        f'dsobs: {bad}:8: group "g": rule "C": expr: {_why("histogram_count(x) > 1")}\n'
        "    histogram_count(x)\n    > 1\n"
        f'dsobs: {bad}:10: group "g": rule "D": it looks back 24 h and the sidecar keeps 6 h; leave this rule to '
        "Prometheus (`dsobs rules check --for-prometheus`)\n"
        "    rate(x[1d]) > 0\n",
    )
    assert main(["rules", "check", str(bad), "--json", "--for-prometheus"]) == ExitCode.USAGE
    rows = _rows(capsys.readouterr().out)
    assert [(r["line"], r["rule"], r["expr"], r["unsupported"]) for r in rows] == [
        (5, "B", "sum(x", False),
        (8, "C", "histogram_count(x)\n> 1", True),
    ]


def test_check_notes_metrics_that_dsobs_does_not_have_as_such_a_rule_never_says_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "own.rules.yaml"
    rules.write_text(
        """groups:
  - name: g
    rules:
      - record: dsobs_mine
        expr: sum(vllm:num_requests_running) + dsobs_store_series + dsobs_log_files
      - alert: A
        expr: dsobs_mine > dsobs_engine_time_to_first_token_seconds_count
      - alert: B
        expr: dsobs_engine_request_waiting > 1
        annotations: {summary: '{{ with query "dsobs_zzz" }}x{{ end }}'}
      - alert: C
        expr: dsobs_engine_time_to_first_token_seconds > 1
"""
    )
    assert main(["rules", "check", str(rules)]) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        f'dsobs: note: {rules}:8: group "g": rule "B": there is no metric dsobs_engine_request_waiting; '
        "did you mean dsobs_engine_requests_waiting?",
        f'dsobs: note: {rules}:8: group "g": rule "B": there is no metric dsobs_zzz; docs/reference/metrics.md has all',
        f'dsobs: note: {rules}:11: group "g": rule "C": there is no metric dsobs_engine_time_to_first_token_seconds; '
        "did you mean dsobs_engine_time_to_first_token_seconds_sum?",
    ]
    assert told.out.endswith("4 rules in 1 group are right\n")
    assert main(["rules", "check", "--json", str(rules)]) == 0
    assert len(_rows(capsys.readouterr().out)) == 4


def test_check_notes_severities_that_no_receiver_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "own.rules.yaml"
    words = ("critical", "Page", "none", "criticl", "P1", "{{ $labels.severity }}")
    text = "".join(f"  - {{alert: A{n}, expr: x, labels: {{severity: '{word}'}}}}\n" for n, word in enumerate(words))
    rules.write_text(f"groups:\n- name: g\n  rules:\n  - {{alert: A, expr: x}}\n{text}")
    assert main(["rules", "check", str(rules)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f'dsobs: note: {rules}:8: group "g": rule "A3": severity \'criticl\' counts as a warning; '
        "did you mean critical?",
        f'dsobs: note: {rules}:9: group "g": rule "A4": severity \'P1\' counts as a warning; '
        "there are critical, error, warning, info",
    ]


def test_no_shipped_rule_names_a_metric_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "check"]) == 0
    assert capsys.readouterr().err == ""


def test_check_without_files_checks_the_rules_that_would_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "dsobs.yaml"
    config.write_text(f"rules:\n  files: [{folder}/r.rules.yaml]\n  gpu_memory: {{for: 2m}}\n")
    assert main(["rules", "check", "--config", str(config), "--json"]) == ExitCode.DONE
    rows = {row["rule"]: row for row in _rows(capsys.readouterr().out)}
    assert rows["GPUMemoryHigh"]["for"] == 120
    assert rows["A"]["file"] == f"{folder}/r.rules.yaml"
    assert main(["rules", "check", "--config", str(config), "--set", "rules.shipped=false"]) == ExitCode.DONE
    assert "2 rules in 1 group" in capsys.readouterr().out


def test_check_of_a_folder_without_rules_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "check", str(tmp_path)]) == ExitCode.USAGE
    assert capsys.readouterr().err == f"dsobs: {tmp_path}: no rule files in this folder; name them *.rules.yaml\n"


def test_test_prints_each_failed_case_and_exits_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "r.test.yaml"
    assert main(["rules", "test", str(path)]) == ExitCode.FAILED
    assert capsys.readouterr() == (
        f"{path}:9: down: up\n    at 1m: not what was expected\n    expected  up 1\n    got       up 0\n"
        f"{path}: 1 of 3 cases failed\n",
        "",
    )
    path.write_text(_TESTS.replace("value: 1", "value: 0"))
    assert main(["rules", "test", str(path), str(path)]) == ExitCode.DONE
    assert capsys.readouterr().out == f"{path}: 3 cases passed\n" * 2


def test_test_in_json_is_a_line_for_each_case(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(folder / "r.test.yaml")
    assert main(["rules", "test", path, "--json"]) == ExitCode.FAILED
    rows = _rows(capsys.readouterr().out)
    assert [(r["file"], r["name"], r["expr"], r["ok"], r["reason"]) for r in rows] == [
        (path, "down", "A", True, ""),
        (path, "down", "A", True, ""),
        (path, "down", "up", False, "at 1m: not what was expected"),
    ]
    assert (rows[2]["expected"], rows[2]["got"]) == (["up 1"], ["up 0"])


def test_a_bad_file_is_named_and_the_others_still_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = folder / "bad.test.yaml", folder / "r.test.yaml"
    bad.write_text("tests:\n  - nam: x\n")
    assert main(["rules", "test", str(bad), str(folder / "gone.yaml"), str(good)]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert err == (
        f"dsobs: {bad}:2: unknown key `nam` in a test; did you mean `name`?\n"
        f"dsobs: {folder}/gone.yaml: can't read it: No such file or directory\n"
    )
    assert f"{good}: 1 of 3 cases failed\n" in out
    assert main(["rules", "test", str(bad), "--json"]) == ExitCode.USAGE
    (row,) = _rows(capsys.readouterr().out)
    assert (row["file"], row["ok"]) == (str(bad), False)


def test_a_pattern_without_rule_files_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "r.test.yaml"
    path.write_text("rule_files: ['gone*.yaml']\ntests: []\n")
    assert main(["rules", "test", str(path)]) == ExitCode.DONE
    assert capsys.readouterr().err == (
        f"dsobs: {path}: no rule file is {folder}/gone*.yaml; its rules are not there in these tests\n"
    )


def test_fmt_check_names_files_and_fmt_writes_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "r.rules.yaml"
    assert main(["rules", "fmt", "--check", str(folder)]) == ExitCode.FAILED
    assert capsys.readouterr().out == f"{path}: not formatted\n"
    assert path.read_text() == _RULES
    assert main(["rules", "fmt", str(path)]) == ExitCode.DONE
    assert capsys.readouterr().out == f"{path}: formatted\n"
    assert path.read_text() == _RULES.replace("up  == 0", "up == 0")
    assert main(["rules", "fmt", "--check", str(folder)]) == ExitCode.DONE


def test_fmt_of_stdin_goes_to_stdout(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(_RULES.encode())))
    assert main(["rules", "fmt", "-"]) == ExitCode.DONE
    assert capsys.readouterr().out == _RULES.replace("up  == 0", "up == 0")


def test_fmt_says_which_expressions_it_leaves_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.rules.yaml"
    path.write_text(_RULES.replace("up  == 0", "|\n          up  # its own\n          == 1e0"))
    text = path.read_text()
    for flags in (["--check"], []):
        assert main(["rules", "fmt", *flags, str(path)]) == ExitCode.DONE
        out, err = capsys.readouterr()
        assert out == ""
        assert err == (f"dsobs: {path}:6: the expression is left as it is: comments stand among its lines\n")
    assert path.read_text() == text


def test_fmt_says_what_it_cannot_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "fmt", str(folder / "gone.yaml")]) == ExitCode.USAGE
    assert capsys.readouterr().err == f"dsobs: {folder}/gone.yaml: can't read it: No such file or directory\n"
