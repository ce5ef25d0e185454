"""The Helm chart without a cluster: what it renders, what it refuses, and that it says nothing twice by itself."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsobs.config import load
from dsobs.manifests import Options, inject
from dsobs.manifests.changes import ANNOTATION
from tests.deploy import packaged
from tests.deploy.chart import CHART, EXAMPLES, FOLDER, OPERATOR, ROOT, examples, golden, helm, refused, rendered

pytestmark = pytest.mark.real("faults")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
LEVELS = ("none", "lease", "restart", "scale")


@pytest.mark.parametrize("example", [*examples(), ""])
def test_lint_finds_nothing(example: str) -> None:
    values = [f"--values={EXAMPLES / example}.yaml"] if example else []
    done = helm("lint", "--strict", "--quiet", str(CHART), *values)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "", "")


@pytest.mark.parametrize("example", examples())
def test_example_renders_as_its_golden_file(example: str) -> None:
    # `python -m tests.deploy.chart` writes them.
    assert golden(example) == (FOLDER / f"{example}.yaml").read_text(encoding="utf-8")


def test_chart_has_the_version_of_dsobs_and_the_examples_its_image() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    assert yaml.safe_load((EXAMPLES / "simulator.yaml").read_text())["vllm"]["image"] == f"dsobs:{VERSION}"


def test_files_of_the_chart_are_the_copies_that_are_generated_and_no_others() -> None:
    there = {str(path.relative_to(ROOT)) for path in (CHART / "files").rglob("*") if path.is_file()}
    assert there == {path for path, _ in packaged.files() if path.startswith(f"{packaged.CHART}/files/")}
    differing = [path for path, text in packaged.files() if (ROOT / path).read_text(encoding="utf-8") != text()]
    assert differing == []


@pytest.mark.parametrize("level", LEVELS)
def test_rights_of_a_level_are_those_of_deploy_rbac(level: str) -> None:
    found = rendered({"rbac": {"level": level}})
    source = [each for each in yaml.safe_load_all((ROOT / f"deploy/rbac/{level}.yaml").read_text()) if each]
    for each in source:
        made = found.pop((each["kind"], "chat-dsobs"))
        for key in ("rules", "automountServiceAccountToken"):
            assert made.get(key) == each.get(key)
        if each["kind"] == "RoleBinding":
            assert made["roleRef"]["name"] == made["subjects"][0]["name"] == "chat-dsobs"
    assert not {kind for kind, _ in found} & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


def test_lease_is_the_default() -> None:
    assert rendered({}) == rendered({"rbac": {"level": "lease"}})


LIMITS = {"cpu": "2", "memory": "8Gi"}
PODS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpu": ("vllm-gpu", {}),
    "cpu": ("vllm-cpu", {}),
    "simulator": ("simulator", {}),
    "no rights": ("simulator", {"rbac": {"level": "none"}}),
    "secret": ("simulator", {"secret": "keys"}),
    "guaranteed": ("vllm-cpu", {"vllm": {"resources": {"requests": LIMITS, "limits": LIMITS}}}),
    "limited disk": ("vllm-gpu", {"vllm": {"resources": {"limits": {"ephemeral-storage": "9Gi"}}}}),
    "root": ("vllm-cpu", {"vllm": {"podSecurityContext": {"runAsUser": 0}}}),
    "engine's key": ("vllm-cpu", {"vllm": {"env": [{"name": "VLLM_API_KEY", "value": "k"}]}}),
    "more state": ("vllm-cpu", {"settings": {"state": {"recorder_max_bytes": 1 << 30}}}),
    "more logs": ("vllm-cpu", {"settings": {"logs": {"file": {"max_bytes": 3 << 30}}}}),
    "annotated": ("vllm-cpu", {"vllm": {"podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}}}),
}


@pytest.mark.parametrize(("example", "further"), PODS.values(), ids=PODS)
def test_pod_is_the_one_that_inject_makes_of_the_same_vllm(
    example: str, further: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "further.json"
    file.write_text(json.dumps(further))
    by_chart = rendered(example, f"--values={file}")["Deployment", "chat-vllm"]
    plain = rendered(example, f"--values={file}", "--set=vllm.sidecar=false")["Deployment", "chat-vllm"]
    given = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())
    level = (further.get("rbac") or given.get("rbac") or {"level": "lease"})["level"]
    options = Options(
        f"dsobs:{VERSION}",
        container="vllm",
        port=8000,
        config_map="chat-dsobs",
        secret=further.get("secret", ""),
        token=level != "none",
        settings=_kept_settings(further),
    )
    outcome = inject(yaml.safe_dump(plain), "plain.yaml", options)
    assert outcome.problems == []
    by_inject = yaml.safe_load(outcome.text)
    by_inject["spec"]["template"]["metadata"]["annotations"].pop(ANNOTATION)
    (sidecar,) = by_chart["spec"]["template"]["spec"]["initContainers"]
    assert sidecar.pop("imagePullPolicy") == "IfNotPresent"
    _, injected_sidecar = sidecar, by_inject["spec"]["template"]["spec"]["initContainers"][0]
    # Settings that say how much is kept stand in the chart's ConfigMap.
    injected_sidecar["env"] = [each for each in injected_sidecar["env"] if each["name"] not in options.settings]
    assert _unordered(by_chart) == _unordered(by_inject)


def _kept_settings(further: dict[str, Any]) -> dict[str, str]:
    """As variables, for `inject` to size its volume by them."""
    found = {}
    if "state" in further.get("settings", {}):
        found["DSOBS_STATE__RECORDER_MAX_BYTES"] = str(further["settings"]["state"]["recorder_max_bytes"])
    if "logs" in further.get("settings", {}):
        found["DSOBS_LOGS__FILE__MAX_BYTES"] = str(further["settings"]["logs"]["file"]["max_bytes"])
    return found


def _unordered(tree: Any) -> Any:
    """With lists of named objects by their names."""
    if isinstance(tree, dict):
        return {key: _unordered(value) for key, value in tree.items()}
    if isinstance(tree, list) and all(isinstance(each, dict) for each in tree):
        return sorted((_unordered(each) for each in tree), key=lambda each: json.dumps(each, sort_keys=True))
    return tree


def test_sidecar_has_a_memory_limit_and_no_cpu_limit() -> None:
    pod = rendered("vllm-gpu")["Deployment", "chat-vllm"]["spec"]["template"]["spec"]
    assert set(pod["initContainers"][0]["resources"]["limits"]) == {"memory"}
    # The engine's grace is longer than what it may take for what is in flight.
    (timeout,) = [arg for arg in pod["containers"][0]["args"] if arg.startswith("--shutdown-timeout=")]
    assert pod["terminationGracePeriodSeconds"] > int(timeout.partition("=")[2]) + 5


@pytest.mark.parametrize("example", examples())
def test_settings_are_ones_that_dsobs_takes(example: str, tmp_path: Path) -> None:
    text = rendered(example)["ConfigMap", "chat-dsobs"]["data"]["dsobs.yaml"]
    (tmp_path / "dsobs.yaml").write_text(text)
    config = load(tmp_path / "dsobs.yaml", {}, {})
    assert config.remediation.mode == "enforce"
    # A sidecar has no NVML: its own cards are what the node's exporter tells of them.
    expected = "http://chat-dsobs-nvml.inference.svc:9941" if example == "vllm-gpu" else "local"
    assert config.gpu.source == expected


def test_large_numbers_of_settings_stay_whole_numbers() -> None:
    found = rendered({"settings": {"state": {"recorder_max_bytes": 123456789}}})
    assert "123456789" in found["ConfigMap", "chat-dsobs"]["data"]["dsobs.yaml"]


def test_monitoring_objects_are_there_where_the_cluster_knows_them_or_it_is_asked_for() -> None:
    def kinds(*words: str) -> set[str]:
        return {kind for kind, _ in rendered({}, *words)} & {"PodMonitor", "PrometheusRule"}

    assert kinds() == set()
    assert kinds(*OPERATOR) == {"PodMonitor", "PrometheusRule"}
    assert kinds("--set=podMonitor.enabled=true") == {"PodMonitor"}
    assert kinds(*OPERATOR, "--set=prometheusRule.enabled=false") == {"PodMonitor"}


def rules(**values: Any) -> dict[str, Any]:
    """Name → spec of each PrometheusRule."""
    found = rendered({"settings": {"rules": values}}, *OPERATOR)
    return {name: each["spec"] for (kind, name), each in found.items() if kind == "PrometheusRule"}


def test_rules_are_those_of_alerts_and_nothing_pages_twice() -> None:
    """Rules that the sidecar evaluates are not given to Prometheus too, unless it is told that Prometheus pages."""
    assert list(rules()) == ["chat-dsobs-prometheus"]
    every = rules(evaluation="prometheus")
    sources = {path.name.removesuffix(".rules.yaml"): path for path in (ROOT / "alerts").glob("*.rules.yaml")}
    assert every == {f"chat-dsobs-{name}": yaml.safe_load(path.read_text()) for name, path in sources.items()}


def test_dashboards_are_those_of_the_repository() -> None:
    sources = {path.name: path.read_text() for path in (ROOT / packaged.DASHBOARDS[0]).glob("*.json")}
    maps = [each for (_, name), each in rendered({}).items() if "-dashboard-" in name]
    assert {file: text for each in maps for file, text in each["data"].items()} == sources
    assert len(maps) == len(sources)
    assert not [name for _, name in rendered({"dashboards": {"enabled": False}}) if "-dashboard-" in name]


def test_network_policy_leaves_the_engine_open_and_closes_dsobs_to_what_is_outside_the_cluster() -> None:
    found = rendered("vllm-gpu", '--set-json=networkPolicy.from=[{"ipBlock":{"cidr":"10.0.0.0/8"}}]')
    engine = found["NetworkPolicy", "chat-dsobs-vllm"]["spec"]["ingress"]
    open_to_all, own = engine
    assert (open_to_all["ports"][0]["port"], "from" in open_to_all) == (8000, False)
    assert own == {
        "ports": [{"protocol": "TCP", "port": 9940}],
        "from": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}],
    }
    (nvml,) = found["NetworkPolicy", "chat-dsobs-nvml"]["spec"]["ingress"]
    assert nvml["ports"][0]["port"] == 9941
    assert not [key for key in rendered("vllm-gpu", "--set=networkPolicy.enabled=false") if key[0] == "NetworkPolicy"]


def test_release_that_is_called_dsobs_says_it_once() -> None:
    assert ("ServiceAccount", "dsobs") in rendered({}, release="dsobs")


SCHEMA = "Error: values don't meet the specifications of the schema(s) in the following chart(s):"
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": ({"vllm": {"replica": 1}}, "- at '/vllm': additional properties 'replica' not allowed"),
    "unknown part": ({"sidecar": {}}, "- at '': additional properties 'sidecar' not allowed"),
    "unknown setting": (
        {"settings": {"remediation": {"mod": "enforce"}}},
        "- at '/settings/remediation': additional properties 'mod' not allowed",
    ),
    "level": (
        {"rbac": {"level": "all"}},
        "- at '/rbac/level': value must be one of 'none', 'lease', 'restart', 'scale'",
    ),
    "type": ({"vllm": {"replicas": "two"}}, "- at '/vllm/replicas': got string, want integer"),
    "toggle": (
        {"podMonitor": {"enabled": "yes"}},
        "- at '/podMonitor/enabled': value must be one of 'auto', true, false",
    ),
    "shm": ({"vllm": {"shmSize": "2 GiB"}}, "- at '/vllm/shmSize': '2 GiB' does not match pattern"),
}


@pytest.mark.parametrize(("values", "line"), BAD.values(), ids=BAD)
def test_value_that_the_chart_does_not_have_is_one_clear_line(values: dict[str, Any], line: str) -> None:
    head, chart, said = refused(values)
    assert (head, chart) == (SCHEMA, "dsobs:")
    assert said.startswith(line)


def test_all_wrong_values_are_said_at_once() -> None:
    values = {"vllm": {"replica": 1}, "rbac": {"level": "all"}, "imag": {}}
    assert len(refused(values)) == 2 + 3


CONFLICTS: dict[str, tuple[dict[str, Any], str]] = {
    "port": (
        {"vllm": {"enabled": True, "args": ["--port=9000"]}},
        "vllm.args: --port=9000 is the chart's own; take it out, or use `dsobs k8s inject` on a manifest of yours",
    ),
    "logging": (
        {"vllm": {"enabled": True, "env": [{"name": "VLLM_LOGGING_CONFIG_PATH", "value": "/x"}]}},
        "vllm.env: VLLM_LOGGING_CONFIG_PATH is the chart's own; take it out, or use `dsobs k8s inject` on a manifest "
        "of yours",
    ),
    "numbers of rules": (
        {"settings": {"rules": {"evaluation": "prometheus", "gpu_memory": {"threshold": 0.9}}}},
        "settings.rules.gpu_memory: the chart's PrometheusRule has the default numbers; set prometheusRule.enabled to "
        "false and load what `dsobs rules show` prints with your settings",
    ),
}


@pytest.mark.parametrize(("values", "line"), CONFLICTS.values(), ids=CONFLICTS)
def test_values_that_do_not_go_together_are_one_clear_line(values: dict[str, Any], line: str) -> None:
    # What follows is Helm's own hint.
    said, *_ = refused(values, *OPERATOR)
    assert said.endswith(line)
