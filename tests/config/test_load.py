from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs.config import Config, ConfigError, Finding, Problem, load, load_with_origins, unready
from dsobs.config.document import MAX_BYTES, parse_document
from dsobs.config.duration import format_duration, parse_duration
from dsobs.config.settings import settings


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "dsobs.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def problems(
    path: Path | None, environ: dict[str, str] | None = None, overrides: dict[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {}, overrides or {})
    prefix = "" if path is None else str(path)
    return [str(problem).removeprefix(prefix) for problem in caught.value.problems]


@pytest.mark.parametrize("text", ["", "{}", "# nothing yet\n", "---\n", "~", "target:\nnotifiers:\n  pagerduty:\n"])
def test_a_file_without_settings_gives_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(written(tmp_path, text), {}, {}) == Config()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"notifiers.alertmanager.resend_delay": "1d"},
            ["--set notifiers.alertmanager.resend_delay: notifiers.alertmanager.urls is missing; write it"],
        ),
        (
            {"notifiers.pagerduty.routing_key": "short", "notifiers.pagerduty.fallback": "true"},
            [
                "--set notifiers.pagerduty.routing_key: is a secret on the command line, where others can read it; "
                "write file:PATH or env:NAME"
            ],
        ),
    ],
)
def test_what_is_missing_is_named_and_not_what_was_written(given: dict[str, str], told: list[str]) -> None:
    assert problems(None, overrides=given) == told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"rules.latency_p99.window": "1s"},
            "is 1s, less than 5 scrapes of 1s, in which no latency can be seen; write 5s or more, or scrape more often",
        ),
        (
            {"rules.latency_p99.window": "1m", "target.scrape_interval": "15s", "hang.min_threshold": "30s"},
            "is 1m, less than 5 scrapes of 15s, in which no latency can be seen; write 75s or more, or scrape more "
            "often",
        ),
        ({"rules.latency_p99.window": "7h"}, "is 7h, and samples are kept for 6h; write 6h or less"),
    ],
)
def test_a_window_holds_some_scrapes_and_no_more_than_is_kept(given: dict[str, str], told: str) -> None:
    assert problems(None, overrides=given) == [f"--set rules.latency_p99.window: {told}"]


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://am:9093/api/v2/alerts", "http://am:9093"),
        ("http://am:9093/prefix/api/v1", "http://am:9093/prefix"),
        ("https://am/?x=1", "https://am/"),
    ],
)
def test_an_alertmanager_is_named_by_its_address_without_the_path_of_its_api(url: str, wanted: str) -> None:
    told = f"{url!r} is an address of its API, which dsobs adds by itself; write {wanted}"
    assert told in problems(None, overrides={"notifiers.alertmanager.urls": url})[0]
    assert load(None, {}, {"notifiers.alertmanager.urls": wanted}).notifiers.alertmanager is not None


def test_no_file_gives_the_defaults() -> None:
    environ = {"PATH": "/bin", "DSOBS_CONFIG": "elsewhere.yaml", "DSOBS_TOOL_CACHE": "/tmp/tools"}
    assert load(None, environ, {}) == Config()


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "target: {name: file, engine: file, scrape_interval: 2s}\n")
    config = load(path, {"DSOBS_TARGET__NAME": "env", "DSOBS_TARGET__ENGINE": "env"}, {"target.name": "flag"})
    assert (config.target.name, config.target.engine, config.target.scrape_interval) == ("flag", "env", 2.0)


def test_origins_name_the_line_the_variable_and_the_flag(tmp_path: Path) -> None:
    path = written(tmp_path, "target:\n  name: a\n  engine: vllm\n")
    loaded = load_with_origins(path, {"DSOBS_GPU__ENABLED": "false"}, {"--url": "http://h:1", "target.engine": "x"})
    assert loaded.origins == {
        "target.name": f"{path}:2",
        "target.engine": "--set target.engine",
        "gpu.enabled": "DSOBS_GPU__ENABLED",
        "target.url": "--url",
    }


def test_words_that_yaml_1_1_takes_for_switches_and_numbers_stay_what_was_written(tmp_path: Path) -> None:
    text = "hang: {probe: off}\nruntime: {name: docker, container: 0123}\ntarget: {name: 12:30:45, engine: no}\n"
    config = load(written(tmp_path, text), {}, {})
    assert config.hang.probe == "off"
    assert config.runtime.container == "0123"
    assert (config.target.name, config.target.engine) == ("12:30:45", "no")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("no", False), ("on", True), ('"false"', False)])
def test_switches_take_the_usual_words(tmp_path: Path, text: str, value: bool) -> None:
    assert load(written(tmp_path, f"gpu: {{enabled: {text}}}"), {}, {}).gpu.enabled is value


def test_anchors_and_merges_are_followed(tmp_path: Path) -> None:
    text = """
notifiers:
  pagerduty: &shared
    routing_key: env:KEY
    severities: &severities [critical]
  webhook:
    severities: *severities
    url: http://127.0.0.1:1/
rules:
  gpu_memory: &limit {for: 1m, threshold: 0.5}
"""
    config = load(written(tmp_path, text), {}, {})
    assert config.notifiers.webhook is not None
    assert config.notifiers.webhook.severities == ("critical",)
    merged = "runtime: &one {timeout: 3s}\nhang: {probe_timeout: 4s}\nstartup: {<<: {budget: 5m}}\n"
    assert load(written(tmp_path, merged), {}, {}).startup.budget == 300.0


def test_own_keys_win_over_merged_ones_and_errors_in_merged_ones_name_their_line(tmp_path: Path) -> None:
    text = "startup: &a\n  budget: 5m\nhang:\n  <<: *a\n  probe_timeout: 4s\n"
    assert problems(written(tmp_path, text)) == [
        ":2: hang.budget: there is no such setting; did you mean startup.budget?"
    ]
    own = "startup:\n  budget: 1m\n  <<: {budget: 5m}\n"
    assert load(written(tmp_path, own), {}, {}).startup.budget == 60.0


def test_aliases_that_unfold_without_end_are_refused(tmp_path: Path) -> None:
    lines = ["rules:", "  files: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert problems(written(tmp_path, "\n".join(lines))) == [": unfolds to more than 100000 values; use fewer aliases"]


def test_a_merge_of_itself_is_refused(tmp_path: Path) -> None:
    assert problems(written(tmp_path, "target: &a\n  <<: *a\n")) == [
        ":2: target: `<<` takes the alias of another section; write `<<: *NAME`"
    ]


def test_files_that_are_no_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    assert problems(tmp_path / "absent.yaml") == [": there is no such file; give the path of a settings file"]
    assert problems(tmp_path) == [": is a directory; give the path of a settings file"]
    assert problems(written(tmp_path, b"a" * (MAX_BYTES + 1))) == [
        ": is larger than 1 MiB; a settings file is a few kilobytes"
    ]
    assert problems(written(tmp_path, b"a: b\nc: \xff\n")) == [":2: is not UTF-8; save it as UTF-8 text"]
    assert problems(written(tmp_path, "a: b\nc: \x07\n")) == [":2: holds the character '\\x07'; delete it"]
    assert problems(written(tmp_path, "[" * 20_000)) == [
        ": is nested too deeply; a settings file has four levels at most"
    ]


def test_variables_are_listed_by_commas_and_empty_ones_count_as_not_set(tmp_path: Path) -> None:
    path = written(tmp_path, "target: {name: file}\n")
    environ = {"DSOBS_GPU__DEVICES": "0, 1,", "DSOBS_TARGET__NAME": "", "DSOBS_TARGET__API_KEY": ""}
    config = load(path, environ, {})
    assert config.gpu.devices == ("0", "1")
    assert config.target.name == "file"
    assert config.target.api_key is None


def test_unknown_and_wrong_variables_are_named_with_the_nearest_valid_one() -> None:
    environ = {
        "DSOBS_TARGET_URL": "http://h:1",
        "DSOBS_target__url": "http://h:1",
        "DSOBS_QQ": "1",
        "DSOBS_HANG__PROBE": "maybe",
    }
    assert problems(None, environ) == [
        "DSOBS_HANG__PROBE: 'maybe' is none of auto, on, off; write one of them",
        "DSOBS_QQ: is no setting of dsobs; rename or unset it",
        "DSOBS_TARGET_URL: is no setting of dsobs; did you mean DSOBS_TARGET__URL?",
        "DSOBS_target__url: is no setting of dsobs; did you mean DSOBS_TARGET__URL?",
    ]


def test_variables_that_kubernetes_sets_for_a_service_named_dsobs_are_let_be() -> None:
    environ = {
        "DSOBS_SERVICE_HOST": "10.0.0.1",
        "DSOBS_SERVICE_PORT": "9940",
        "DSOBS_SERVICE_PORT_METRICS": "9940",
        "DSOBS_PORT": "tcp://10.0.0.1:9940",
        "DSOBS_PORT_9940_TCP": "tcp://10.0.0.1:9940",
        "DSOBS_PORT_9940_TCP_ADDR": "10.0.0.1",
        "DSOBS_CENTRAL_PORT_9940_TCP_PROTO": "tcp",
    }
    environ = {"PATH": "/bin", "DSOBS_CONFIG": "elsewhere.yaml", "DSOBS_TOOL_CACHE": "/tmp/tools"}
    assert load(None, environ, {}) == Config()


def test_a_variable_that_a_secret_refers_to_is_no_unknown_one() -> None:
    environ = {"DSOBS_TARGET__API_KEY": "env:DSOBS_ENGINE_KEY", "DSOBS_ENGINE_KEY": "hunter2"}
    assert str(load(None, environ, {}).target.api_key) == "env:DSOBS_ENGINE_KEY"


def test_flags_are_named_as_they_were_given() -> None:
    overrides = {
        "--mode": "repair",
        "remediation.mode": "observe",
        "target": "x",
        "target.ulr": "x",
        "notifiers.pagerduty.routing_key": "hunter2",
    }
    assert problems(None, {}, overrides) == [
        "--mode: 'repair' is none of observe, enforce; write one of them",
        "--set remediation.mode: sets remediation.mode, and so does --mode; give one of them",
        "--set target: is a section; set one of target.api_key, target.ca_file, target.engine, target.max_page_bytes, "
        "target.max_series, target.name, target.scrape_interval, target.scrape_timeout, target.url",
        "--set target.ulr: there is no such setting; did you mean target.url?",
        "--set notifiers.pagerduty.routing_key: is a secret on the command line, where others can read it; "
        "write file:PATH or env:NAME",
    ]


def test_a_contradiction_of_flag_and_variable_names_both_the_flag_and_the_setting() -> None:
    assert problems(None, {"DSOBS_RUNTIME__NAME": "docker"}) == [
        "DSOBS_RUNTIME__NAME: runtime.container is empty, and runtime.name is docker; "
        "write the name or id of the engine's container"
    ]
    assert problems(None, {"DSOBS_RUNTIME__NAME": "none"}, {"--mode": "enforce"}) == [
        "--mode: is enforce, and with runtime.name none nothing can be restarted; name a runtime or write observe"
    ]


def test_a_variable_over_a_wrong_section_leaves_the_file_to_blame(tmp_path: Path) -> None:
    assert problems(written(tmp_path, "target: 5\n"), {"DSOBS_TARGET__NAME": "a"}) == [
        ":1: target: is one value, where settings are wanted; write lines of `name: value` below it"
    ]


def test_paths_in_the_file_start_from_its_directory_and_others_do_not(tmp_path: Path) -> None:
    path = written(tmp_path, "rules: {files: [a.yaml, /b.yaml]}\ntarget: {api_key: 'file:key', ca_file: ca.pem}\n")
    config = load(path, {"DSOBS_STATE__DIRECTORY": "state"}, {})
    assert config.rules.files == (tmp_path / "a.yaml", Path("/b.yaml"))
    assert str(config.target.api_key) == f"file:{tmp_path}/key"
    assert config.target.ca_file == tmp_path / "ca.pem"
    assert config.state.directory == Path("state")


def test_no_message_holds_a_credential_of_an_address(tmp_path: Path) -> None:
    (line,) = problems(written(tmp_path, "api: {listen: 'http://me:hunter2@h'}"))
    assert "hunter2" not in line


def test_missing_secrets_and_files_are_found_where_they_were_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short").write_text("hunter2\n")
    (tmp_path / "empty").write_text("\n")
    monkeypatch.delenv("ABSENT", raising=False)
    text = (
        "target:\n  api_key: env:ABSENT\n  ca_file: ca.pem\nrules:\n  files: [a.yaml]\n"
        "notifiers:\n  pagerduty:\n    routing_key: file:short\n"
        "  webhook:\n    url: ftp://hunter2\n    token: file:empty\n"
        "api:\n  control_token: file:absent\n"
    )
    path = written(tmp_path, text)
    loaded = load_with_origins(path, {}, {})
    assert [str(problem).removeprefix(str(path)) for problem in loaded.problems(unready(loaded.config))] == [
        ":2: target.api_key: secret environment variable ABSENT is not set; create it or point to another",
        f":3: target.ca_file: there is no file {tmp_path}/ca.pem; write one that exists",
        f":5: rules.files: there is no file {tmp_path}/a.yaml; write one that exists",
        ":8: notifiers.pagerduty.routing_key: has 7 characters and not 32; copy the integration key again",
        ":10: notifiers.webhook.url: is no http:// or https:// address; write where to POST",
        f":11: notifiers.webhook.token: secret file {tmp_path}/empty is empty; create it or point to another",
        f":13: api.control_token: secret file {tmp_path}/absent: No such file or directory; "
        "create it or point to another",
    ]


def test_a_routing_key_of_32_characters_is_ready(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k" * 32)
    config = load(written(tmp_path, "notifiers: {pagerduty: {routing_key: 'file:key'}}"), {}, {})
    assert list(unready(config)) == []


def test_a_finding_about_defaults_names_the_setting_alone() -> None:
    loaded = load_with_origins(None, {}, {})
    assert [str(one) for one in loaded.problems([Finding("gpu.interval", ("gpu.interval",), "is odd; mend it")])] == [
        "gpu.interval: is odd; mend it"
    ]


def test_no_two_settings_share_a_variable_and_every_default_is_valid() -> None:
    variables = [setting.variable for setting in settings().values()]
    assert len(set(variables)) == len(variables)
    assert all(name.startswith("DSOBS_") and "__" in name for name in variables)
    assert Config.model_validate(Config().model_dump(by_alias=True)) == Config()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_gives_a_tree_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(parse_document(text, "f").tree, dict)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["target", "url", "hang", "probe", "rules", "files", "pagerduty", "x"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_yaml_gives_a_config_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    import yaml

    path = written(tmp_path_factory.getbasetemp(), yaml.safe_dump(value))
    found: tuple[Problem, ...] = ()
    try:
        load(path, {}, {})
    except ConfigError as error:
        found = error.problems
    assert all("\n" not in str(problem) for problem in found)


@given(st.integers(min_value=0, max_value=10**12))
def test_durations_are_read_as_they_are_written(millis: int) -> None:
    assert parse_duration(format_duration(millis / 1000)) == pytest.approx(millis / 1000)
