"""`dsobs k8s inject` on manifests as they are written in real life."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsobs.config import load
from dsobs.manifests import Options, Outcome, inject, remove, sidecar
from dsobs.runtimes import control_folder
from tests.manifests import golden

OPTIONS = Options(image=golden.IMAGE)
POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: p
spec:
  containers:
  - name: engine
    image: vllm/vllm-openai:v0.12.0
    args: [--model, m]
"""


def pod(text: str, options: Options = OPTIONS) -> dict[str, Any]:
    """The pod that an injected manifest of one makes."""
    outcome = inject(text, "m.yaml", options)
    assert outcome.problems == []
    tree: dict[str, Any] = yaml.safe_load(outcome.text)
    return tree


def engine(tree: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = tree["spec"]["containers"][0]
    return found


def side(tree: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in tree["spec"]["initContainers"] if one["name"] == "dsobs")
    return found


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def said(outcome: Outcome) -> str:
    return "\n".join(map(str, outcome.remarks))


def with_engine(lines: str) -> str:
    """The pod with further lines of its container."""
    return POD + "".join(f"    {line}\n" for line in lines.splitlines())


@pytest.mark.parametrize("manifest", golden.manifests(), ids=lambda path: path.name)
def test_result_is_the_golden_one(manifest: Path) -> None:
    assert golden.golden(manifest) == golden.file_of(manifest).read_text(encoding="utf-8")


@pytest.mark.parametrize("manifest", golden.manifests(), ids=lambda path: path.name)
def test_second_run_changes_nothing_and_remove_gives_the_very_bytes_back(manifest: Path) -> None:
    text = golden.read(manifest)
    once = inject(text, manifest.name, OPTIONS)
    assert once.problems == []
    assert once.text != text
    assert inject(once.text, manifest.name, OPTIONS).text == once.text
    assert remove(once.text, manifest.name).text == text


@pytest.mark.parametrize("manifest", golden.manifests(), ids=lambda path: path.name)
def test_settings_given_to_the_sidecar_are_right(manifest: Path) -> None:
    outcome = inject(golden.read(manifest), manifest.name, OPTIONS)
    for tree in yaml.safe_load_all(outcome.text):
        for container in containers_of(tree):
            if container["name"] == "dsobs":
                given = {k: v for k, v in variables(container).items() if k.startswith("DSOBS_")}
                config = load(None, given, {})
                assert config.runtime.name == "kubernetes"
                assert config.remediation.coordination == "lease"


def containers_of(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, dict):
        found = [one for kind in ("containers", "initContainers") for one in tree.get(kind) or ()]
        return found + [one for value in tree.values() for one in containers_of(value)]
    return [one for value in tree for one in containers_of(value)] if isinstance(tree, list) else []


def test_remove_holds_after_the_manifest_was_changed_by_hand() -> None:
    once = inject(with_engine("livenessProbe: {httpGet: {path: /health, port: 8000}}"), "m.yaml", OPTIONS).text
    by_hand = once.replace("v0.12.0", "v0.13.0").replace(
        "  - name: dsobs-control\n    emptyDir",
        "  - name: cache\n    emptyDir: {}\n  - name: dsobs-control\n    emptyDir",
    )
    tree = yaml.safe_load(remove(by_hand, "m.yaml").text)
    assert tree["spec"]["containers"][0]["image"].endswith(":v0.13.0")
    assert tree["spec"]["containers"][0]["livenessProbe"] == {"httpGet": {"path": "/health", "port": 8000}}
    assert tree["spec"]["volumes"] == [{"name": "cache", "emptyDir": {}}]
    assert set(tree["spec"]) == {"containers", "volumes"}
    assert "annotations" not in tree["metadata"]


@pytest.mark.parametrize("as_json", [False, True])
def test_remove_holds_after_a_cluster_has_written_the_manifest_anew(as_json: bool) -> None:
    manifest = golden.FOLDER / "deployment.yaml"
    text = golden.read(manifest).partition("---")[0]
    tree = yaml.safe_load(inject(text, "m.yaml", OPTIONS).text)
    rewritten = json.dumps(tree, indent=4, sort_keys=True) if as_json else yaml.safe_dump(tree)
    back = remove(rewritten, "m.yaml")
    assert yaml.safe_load(back.text) == yaml.safe_load(text)
    assert (back.remarks, back.problems) == ([], [])


def test_remove_of_what_was_never_injected_says_so_and_changes_nothing() -> None:
    outcome = remove(POD, "m.yaml")
    assert (outcome.text, said(outcome)) == (POD, "m.yaml: nothing was injected here; it stays as it is")


def test_what_was_changed_by_hand_in_the_sidecar_stays() -> None:
    once = inject(POD, "m.yaml", OPTIONS).text
    by_hand = once.replace(f"image: {golden.IMAGE}", "image: mirror/dsobs:2").replace(
        "    - name: DSOBS_TARGET__URL", "    - name: PD_KEY\n      value: abc\n    - name: DSOBS_TARGET__URL"
    )
    again = inject(by_hand, "m.yaml", OPTIONS)
    assert again.text == by_hand
    assert "the sidecar keeps its image mirror/dsobs:2; --image dsobs:1.0.0 replaces it" in said(again)


def test_another_run_brings_its_own_options_in() -> None:
    once = inject(POD, "m.yaml", OPTIONS).text
    options = Options(
        "dsobs:2", image_given=True, settings={"DSOBS_REMEDIATION__MODE": "enforce"}, secret="keys", token=True
    )
    tree = pod(once, options)
    assert side(tree)["image"] == "dsobs:2"
    assert variables(side(tree))["DSOBS_REMEDIATION__MODE"] == "enforce"
    assert side(tree)["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert {"name": "dsobs-token", "mountPath": sidecar.TOKEN_PATH, "readOnly": True} in side(tree)["volumeMounts"]
    assert remove(inject(once, "m.yaml", options).text, "m.yaml").text == POD


def test_engine_sees_the_control_folder_and_can_not_write_to_it() -> None:
    tree = pod(POD)
    mounts = {one["name"]: one for one in engine(tree)["volumeMounts"]}
    assert mounts["dsobs-control"] == {
        "name": "dsobs-control",
        "mountPath": control_folder.MOUNT_PATH,
        "readOnly": True,
    }
    assert "readOnly" not in mounts["dsobs-logs"]
    assert {one["name"]: one.get("readOnly", False) for one in side(tree)["volumeMounts"]} == {
        "dsobs-control": False,
        "dsobs-state": False,
        "dsobs-logs": True,
    }


def test_only_the_sidecar_gets_the_token() -> None:
    tree = pod(POD, Options("i", token=True))
    assert tree["spec"]["automountServiceAccountToken"] is False
    assert all(one["name"] != "dsobs-token" for one in engine(tree)["volumeMounts"])


def test_sidecar_is_native_and_has_no_probe() -> None:
    container = side(pod(POD))
    assert container["restartPolicy"] == "Always"
    assert not [name for name in container if name.endswith("Probe")]
    assert "cpu" not in container["resources"]["limits"]


def test_all_files_stay_under_half_of_their_volume() -> None:
    tree = pod(POD, Options("i", settings={"DSOBS_STATE__RECORDER_MAX_BYTES": str(3 * 1024**3)}))
    limits = {one["name"]: one["emptyDir"]["sizeLimit"] for one in tree["spec"]["volumes"] if "emptyDir" in one}
    mib = {name: int(limit.removesuffix("Mi")) for name, limit in limits.items()}
    assert mib["dsobs-logs"] * sidecar.MIB / 2 > sidecar.LOG_BYTES * sidecar.LOG_FILES * 5 / 4
    config = load(None, {"DSOBS_STATE__RECORDER_MAX_BYTES": str(3 * 1024**3)}, {})
    kept = config.state.recorder_max_bytes + config.state.incident_max_bytes + config.logs.file.max_bytes
    assert (
        kept + (sidecar.DEAD_LETTERS_MIB + sidecar.DATABASES_MIB) * sidecar.MIB < mib["dsobs-state"] * sidecar.MIB / 2
    )


def test_pod_with_a_limit_on_disk_space_gets_room_for_the_volumes() -> None:
    limited = pod(with_engine('resources: {limits: {ephemeral-storage: "2Gi"}}'))
    assert side(limited)["resources"]["limits"]["ephemeral-storage"] == "2048Mi"
    assert "ephemeral-storage" not in side(pod(POD))["resources"]["limits"]


def test_probes_are_those_of_the_control_folder() -> None:
    container = engine(pod(POD))
    assert container["livenessProbe"] == control_folder.liveness_probe()
    assert container["livenessProbe"]["terminationGracePeriodSeconds"] == 5
    assert container["readinessProbe"] == control_folder.readiness_probe("http://127.0.0.1:8000/health")
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] == 24 * 3600


@pytest.mark.parametrize(
    ("written", "threshold"),
    [
        ("{httpGet: {path: /health, port: 8000}}", 8640),
        ("{httpGet: {path: /health, port: 8000}, periodSeconds: 7}", 12343),
        ("{httpGet: {path: /health, port: 8000}, periodSeconds: 60, failureThreshold: 30}", 1440),
        ("{httpGet: {path: /health, port: 8000}, periodSeconds: 60, failureThreshold: 2000}", 2000),
    ],
)
def test_startup_probe_is_widened_to_a_day_and_never_narrowed(written: str, threshold: int) -> None:
    probe = engine(pod(with_engine(f"startupProbe: {written}")))["startupProbe"]
    assert probe == {**yaml.safe_load(written), "failureThreshold": threshold}


@pytest.mark.parametrize(
    "written",
    [
        "{httpGet: {path: /health, port: 8000}}",
        "{httpGet: {path: /v1/models, port: 8000}, periodSeconds: 3}",
        "{tcpSocket: {port: 8000}}",
        '{exec: {command: [curl, -f, "http://localhost:8000/health"]}}',
    ],
)
def test_liveness_probe_that_only_asks_the_api_server_is_replaced_with_a_remark(written: str) -> None:
    outcome = inject(with_engine(f"livenessProbe: {written}"), "m.yaml", OPTIONS)
    assert engine(yaml.safe_load(outcome.text))["livenessProbe"] == control_folder.liveness_probe()
    assert "is replaced: it restarts an engine that is only busy" in said(outcome)
    assert yaml.safe_load(remove(outcome.text, "m.yaml").text) == yaml.safe_load(
        with_engine(f"livenessProbe: {written}")
    )


def test_liveness_probe_of_ones_own_is_replaced_only_when_told_to() -> None:
    text = with_engine("livenessProbe: {exec: {command: [/opt/check-gpu]}}")
    (problem,) = inject(text, "m.yaml", OPTIONS).problems
    assert str(problem) == (
        "m.yaml:10: Pod/p: container engine has a livenessProbe of its own (exec); a container has one only, and dsobs "
        "asks for restarts through it: take yours out, or replace it with --replace-liveness-probe"
    )
    assert engine(pod(text, Options("i", replace_liveness=True)))["livenessProbe"] == control_folder.liveness_probe()


def test_readiness_probe_asks_what_it_asked_before() -> None:
    text = with_engine(
        "ports: [{name: api, containerPort: 8000}]\n"
        "readinessProbe: {httpGet: {path: /v1/models, port: api}, periodSeconds: 2, failureThreshold: 9}"
    )
    probe = engine(pod(text))["readinessProbe"]
    assert (probe["periodSeconds"], probe["failureThreshold"]) == (2, 9)
    assert probe["exec"] == control_folder.readiness_probe("http://127.0.0.1:8000/v1/models")["exec"]


def test_readiness_probe_of_another_port_stays() -> None:
    outcome = inject(with_engine("readinessProbe: {httpGet: {path: /, port: 9}}"), "m.yaml", OPTIONS)
    assert engine(yaml.safe_load(outcome.text))["readinessProbe"] == {"httpGet": {"path": "/", "port": 9}}
    assert "asks something else than the engine and stays; a drain does not show in it" in said(outcome)


def test_engine_that_has_its_own_logging_keeps_it() -> None:
    for line in (
        "env: [{name: VLLM_LOGGING_CONFIG_PATH, value: /etc/own.json}]",
        'env: [{name: VLLM_CONFIGURE_LOGGING, value: "0"}]',
        "command: [vllm, serve, --log-config-file=/etc/own.json]",
    ):
        tree = pod(with_engine(line))
        assert "dsobs-logs" not in {one["name"] for one in tree["spec"]["volumes"]}
        assert "DSOBS_LOGS__FILES" not in variables(side(tree))
        assert engine(tree).get("env", []) == yaml.safe_load(line).get("env", [])


def test_guaranteed_pod_stays_guaranteed() -> None:
    whole = "resources: {limits: {cpu: 8, memory: 32Gi}, requests: {cpu: 8, memory: 32Gi}}"
    resources = side(pod(with_engine(whole)))["resources"]
    assert resources["limits"] == resources["requests"] == {"cpu": "500m", "memory": "192Mi"}
    burstable = side(pod(with_engine(whole.replace("requests: {cpu: 8", "requests: {cpu: 4"))))["resources"]
    assert "cpu" not in burstable["limits"]


def test_sidecar_of_a_pod_that_runs_as_root_runs_as_another_user() -> None:
    tree = pod(POD + "  securityContext: {runAsUser: 0}\n")
    assert side(tree)["securityContext"]["runAsUser"] == 65532
    assert "runAsUser" not in side(pod(POD))["securityContext"]


def test_coordination_is_never_set() -> None:
    for manifest in golden.manifests():
        assert "COORDINATION" not in inject(golden.read(manifest), manifest.name, OPTIONS).text


def test_api_key_reaches_the_sidecar_by_its_reference() -> None:
    line = "env: [{name: VLLM_API_KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}]"
    given = variables(side(pod(with_engine(line))))
    assert given["VLLM_API_KEY"] == {"secretKeyRef": {"name": "s", "key": "k"}}
    assert given["DSOBS_TARGET__API_KEY"] == "env:VLLM_API_KEY"


def test_image_that_may_have_no_shell_is_remarked_on() -> None:
    text = "its image must have sh, and date with +%s, which the probes use"
    assert text not in said(inject(POD, "m.yaml", OPTIONS))
    own = POD.replace("vllm/vllm-openai", "registry.example.com:5000/team/vllm-slim")
    assert own != POD
    assert text in said(inject(own, "m.yaml", OPTIONS))
