"""Settings read again: what is used at once, what needs a restart, what can't be used."""

from pathlib import Path

import pytest

from dsobs.config import Config, ReloadError, load, load_with_origins
from dsobs.sidecar.settings import changed, changed_at_start_only, kept, read_plan, reread_plan

RULES = "groups: [{name: g, rules: [{alert: A, expr: up == 0}]}]\n"


def written(folder: Path, text: str) -> Config:
    file = folder / "dsobs.yaml"
    file.write_text(text)
    return load(file, {}, {})


def test_changes_are_named_by_their_settings(tmp_path: Path) -> None:
    old = written(tmp_path, "remediation: {mode: observe}\n")
    new = written(tmp_path, "remediation: {mode: enforce}\nnotifiers: {webhook: {url: http://a}}\n")
    assert changed(old, new) == ("notifiers.webhook.url", "notifiers.webhook.severities", "remediation.mode")
    assert changed(old, old) == ()


def test_what_needs_a_restart_is_named_and_stays_as_it_was(tmp_path: Path) -> None:
    old = written(tmp_path, "{}\n")
    new = written(
        tmp_path,
        "target: {url: 'http://other:8000'}\nstate: {directory: /elsewhere}\napi: {listen: '0.0.0.0:1', "
        "native_metrics: true}\nlog: {level: debug, format: json}\nremediation: {mode: enforce}\n"
        "gpu: {interval: 5s}\nhost: {enabled: false}\n",
    )
    assert changed_at_start_only(old, new) == ("target.url", "state.directory", "api.listen", "log.format")
    used = kept(old, new)
    assert (used.target, used.state, used.api.listen, used.log.format) == (
        old.target, old.state, old.api.listen, old.log.format,
    )  # fmt: skip
    assert (used.gpu, used.host) == (new.gpu, new.host)
    assert (used.api.native_metrics, used.log.level, used.remediation.mode) == (True, "debug", "enforce")


def test_a_plan_holds_settings_rules_and_inhibition(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(RULES)
    (tmp_path / "am.yaml").write_text("inhibit_rules: [{source_matchers: [a=b], target_matchers: [c=d]}]\n")
    written(tmp_path, "rules: {shipped: false, files: [own.yaml]}\ninhibition: {shipped: false, files: [am.yaml]}\n")
    plan = reread_plan(lambda: load_with_origins(tmp_path / "dsobs.yaml", {}, {}), Config())
    assert [group.name for group in plan.groups] == ["g"]
    assert len(plan.inhibit) == 1
    assert plan.left == ()
    assert len(read_plan(Config()).inhibit) >= 4


@pytest.mark.parametrize(
    ("file", "text", "where"),
    [
        ("dsobs.yaml", "remediation: {mode: maybe}\n", "dsobs.yaml:1"),
        ("dsobs.yaml", "pages: {summary: '{{ $limit }}'}\n", "dsobs.yaml:1: pages.summary"),
        (
            "dsobs.yaml",
            "notifiers: {alertmanager: {urls: ['http://a'], silence_scope: ['pod=\"x']}}\n",
            "dsobs.yaml:1: notifiers.alertmanager.silence_scope",
        ),
        ("own.yaml", "groups: [{name: g, rules: [{alert: A, expr: 'up =='}]}]\n", "own.yaml:1"),
        ("am.yaml", "inhibit_rules: [{source_matchers: [], target_matchers: [a=b]}]\n", "am.yaml:1"),
    ],
)
def test_one_bad_file_and_nothing_of_it_is_used(tmp_path: Path, file: str, text: str, where: str) -> None:
    (tmp_path / "own.yaml").write_text(RULES)
    (tmp_path / "am.yaml").write_text("{}\n")
    settings = "rules: {files: [own.yaml]}\ninhibition: {files: [am.yaml]}\n"
    (tmp_path / "dsobs.yaml").write_text(settings)
    (tmp_path / file).write_text(text)
    with pytest.raises(ReloadError, match=where.replace(".", r"\.")):
        reread_plan(lambda: load_with_origins(tmp_path / "dsobs.yaml", {}, {}), Config())


def test_a_reload_names_what_is_wrong_with_settings_rules_and_inhibition_at_once(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(RULES)
    (tmp_path / "am.yaml").write_text("{}\n")
    file = tmp_path / "dsobs.yaml"
    file.write_text("rules: {files: [own.yaml]}\ninhibition: {files: [am.yaml]}\n")
    running = load(file, {}, {})
    file.write_text(file.read_text() + "remediation: {mode: maybe}\n")
    (tmp_path / "own.yaml").write_text("groups: [{name: g, rules: [{alert: A, expr: 'up =='}]}]\n")
    (tmp_path / "am.yaml").write_text("inhibit_rules: [{source_matchers: [], target_matchers: [a=b]}]\n")
    with pytest.raises(ReloadError) as refused:
        reread_plan(lambda: load_with_origins(file, {}, {}), running)
    for where in ("dsobs.yaml:3", "own.yaml:1", "am.yaml:1"):
        assert where in str(refused.value)


def test_a_reload_looks_into_the_files_that_the_new_settings_name_though_another_setting_is_wrong(
    tmp_path: Path,
) -> None:
    (tmp_path / "own.yaml").write_text("groups: [{name: g, rules: [{alert: A, expr: 'up =='}]}]\n")
    file = tmp_path / "dsobs.yaml"
    file.write_text("rules: {files: [own.yaml]}\nremediation: {mode: maybe}\n")
    with pytest.raises(ReloadError) as refused:
        reread_plan(lambda: load_with_origins(file, {}, {}), Config())
    for where in ("dsobs.yaml:2", "own.yaml:1"):
        assert where in str(refused.value)


@pytest.mark.parametrize("scope", ['pod=~".*"', "pod=~.*", "pod=", "severity!=info"])
def test_a_scope_that_would_silence_other_servers_too_is_refused_with_its_line(tmp_path: Path, scope: str) -> None:
    quoted = scope.replace("'", "''")
    file = tmp_path / "dsobs.yaml"
    file.write_text(f"notifiers:\n  alertmanager:\n    urls: ['http://a']\n    silence_scope: ['{quoted}']\n")
    with pytest.raises(ReloadError) as refused:
        reread_plan(lambda: load_with_origins(file, {}, {}), Config())
    told = str(refused.value)
    assert f"{file}:4: notifiers.alertmanager.silence_scope: " in told
    assert (
        "fits whatever has no such label, so that a silence would hold for every server; write what names this" in told
    )
