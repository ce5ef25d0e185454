"""The Roles in deploy/rbac grant what dsobs asks for, and no more; the API server's own word is in tests/real."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from dsobs.runtimes.kubernetes.api import ACTING, FURTHER, NEEDED, Right
from dsobs.runtimes.kubernetes.coordination import LEASE_RIGHTS

FOLDER = Path(__file__).parents[3] / "deploy/rbac"
ROLLOUTS = tuple(right for right in FURTHER if right.group == "apps")
SCALING = {
    *((verb, "apps", f"{kind}/scale") for kind in ("deployments", "statefulsets") for verb in ("get", "update")),
    *((verb, "autoscaling", "horizontalpodautoscalers") for verb in ("list", "update")),
    *((verb, "keda.sh", "scaledobjects") for verb in ("list", "update")),
}


def granted(level: str) -> set[tuple[str, str, str]]:
    """(verb, group, resource) of the level's Role."""
    objects = yaml.safe_load_all((FOLDER / f"{level}.yaml").read_text(encoding="utf-8"))
    rules = [rule for each in objects if each["kind"] == "Role" for rule in each["rules"]]
    return {(v, g, r) for rule in rules for v in rule["verbs"] for g in rule["apiGroups"] for r in rule["resources"]}


def used(rights: Iterable[Right]) -> set[tuple[str, str, str]]:
    return {(right.verb, right.group, right.resource) for right in rights}


LEASE = used((*NEEDED, *LEASE_RIGHTS, *ROLLOUTS))


@pytest.mark.parametrize(
    ("level", "rights"),
    [("none", set()), ("lease", LEASE), ("restart", LEASE | used(ACTING)), ("scale", LEASE | SCALING)],
)
def test_role_grants_exactly_what_its_level_uses(level: str, rights: set[tuple[str, str, str]]) -> None:
    assert granted(level) == rights


def test_no_role_reads_secrets_or_touches_nodes() -> None:
    for file in FOLDER.iterdir():
        assert not {r for _, _, r in granted(file.stem)} & {"secrets", "configmaps", "nodes", "pods/exec", "*"}
