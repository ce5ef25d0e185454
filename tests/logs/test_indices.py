"""Templates, lifecycle and roles: what they say, and that they are put only where something differs."""

import copy
from typing import Any

import jsonschema
import pytest

from dsobs.config.logs import Elasticsearch
from dsobs.logs.indices.fields import TYPES, mappings
from dsobs.logs.indices.install import Installed, InstallError, install
from dsobs.logs.indices.roles import READER, SETUP, WRITER, roles
from dsobs.logs.indices.templates import STREAMS, resources, time_value

URL = "http://127.0.0.1:9200"

POLICY_SCHEMA = {
    "type": "object",
    "required": ["policy"],
    "additionalProperties": False,
    "properties": {
        "policy": {
            "type": "object",
            "required": ["phases"],
            "additionalProperties": False,
            "properties": {
                "_meta": {"type": "object"},
                "phases": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "hot": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "min_age": {"type": "string"},
                                "actions": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {
                                        "rollover": {
                                            "type": "object",
                                            "minProperties": 1,
                                            "additionalProperties": False,
                                            "properties": {
                                                "max_age": {"type": "string", "pattern": r"^\d+(d|h|m|s)$"},
                                                "max_primary_shard_size": {"type": "string", "pattern": r"^\d+gb$"},
                                                "max_docs": {"type": "integer"},
                                            },
                                        }
                                    },
                                },
                            },
                        },
                        "delete": {
                            "type": "object",
                            "required": ["min_age", "actions"],
                            "additionalProperties": False,
                            "properties": {
                                "min_age": {"type": "string", "pattern": r"^\d+(d|h|m|s)$"},
                                "actions": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {"delete": {"type": "object", "maxProperties": 1}},
                                },
                            },
                        },
                    },
                },
            },
        }
    },
}
"""What Elasticsearch's reference says of `PUT _ilm/policy`, as far as it is used. The server for tests has none."""


def settings(**changes: Any) -> Elasticsearch:
    return Elasticsearch(urls=(URL,), **changes)


class Server:
    """Keeps what is put, spelled as Elasticsearch spells it; made by what 9.2 answered."""

    def __init__(self, *, unknown_types: tuple[str, ...] = (), indices: dict[str, Any] | None = None) -> None:
        self.stored: dict[str, Any] = {}
        self.puts: list[str] = []
        self.unknown_types = unknown_types
        self.indices = indices or {}
        self.refuse: tuple[int, Any] | None = None

    async def ask(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.refuse is not None:
            return self.refuse
        api, _, name = path.rpartition("/")
        if not api:
            return (200, self.indices[name]) if name in self.indices else (404, {"error": {"type": "index_not_found"}})
        if method == "GET":
            if path not in self.stored:
                return 404, {"error": {"type": "resource_not_found_exception", "reason": f"{name} not found"}}
            key = api.removeprefix("_")
            if key in ("component_template", "index_template"):
                return 200, {f"{key}s": [{"name": name, key: self.stored[path]}]}
            return 200, {name: self.stored[path]}
        for kind in self.unknown_types:
            if f"'type': '{kind}'" in str(body):
                reason = f"Failed to parse mapping: The mapper type [{kind}] declared on field [x] does not exist."
                return 400, {"error": {"type": "mapper_parsing_exception", "reason": reason}, "status": 400}
        self.puts.append(path)
        kept = copy.deepcopy(body)
        index = kept.get("template", {}).get("settings", {}).get("index")
        if index:
            index["mapping"] = {
                "ignore_malformed": "true",
                "total_fields": {"ignore_dynamic_beyond_limit": "true"},
            }
        if "lifecycle" in kept.get("template", {}):
            kept["template"]["lifecycle"]["enabled"] = True
        self.stored[path] = {**kept, "created_date_millis": 1}
        return 200, {"acknowledged": True}


async def outcomes(server: Server, wanted: Elasticsearch, *, with_roles: bool = False) -> list[Installed]:
    return [one async for one in install(server.ask, wanted, with_roles=with_roles)]


async def test_installed_twice_nothing_is_put_the_second_time() -> None:
    server = Server()
    first = await outcomes(server, settings(index="deepseek-logs"), with_roles=True)
    assert {one.outcome for one in first} == {"created"}
    puts = list(server.puts)
    second = await outcomes(server, settings(index="deepseek-logs"), with_roles=True)
    assert {one.outcome for one in second} == {"unchanged"}
    assert server.puts == puts


async def test_only_what_differs_is_put_again() -> None:
    server = Server()
    await outcomes(server, settings())
    server.puts.clear()
    done = await outcomes(server, settings(retention=7 * 86400))
    assert [(one.name, one.outcome) for one in done if one.outcome != "unchanged"] == [
        ("dsobs-logs@settings", "updated")
    ]
    assert server.puts == ["_component_template/dsobs-logs@settings"]


async def test_what_an_operator_changed_by_hand_is_put_right() -> None:
    server = Server()
    await outcomes(server, settings())
    server.stored["_index_template/dsobs-logs"]["priority"] = 1
    assert [one.outcome for one in await outcomes(server, settings())] == ["unchanged", "unchanged", "updated"]


async def test_a_type_that_the_server_lacks_is_replaced_and_said() -> None:
    server = Server(unknown_types=("match_only_text", "wildcard"))
    first = await outcomes(server, settings())
    assert "match_only_text is text" in first[0].note
    assert "wildcard is keyword" in first[0].note
    kept = server.stored["_component_template/dsobs-logs@mappings"]["template"]["mappings"]["properties"]
    assert (kept["message"], kept["url.path"]) == ({"type": "text"}, {"type": "keyword", "ignore_above": 1024})
    assert [one.outcome for one in await outcomes(server, settings())] == ["unchanged"] * 3


async def test_an_index_that_is_there_gets_no_template_and_it_is_said() -> None:
    server = Server(indices={"deepseek-logs": {"deepseek-logs": {"aliases": {}}}})
    last = (await outcomes(server, settings(index="deepseek-logs")))[-1]
    assert last.outcome == "skipped"
    assert last.note == "deepseek-logs is an index, no data stream; its mappings and lifecycle stay as they are"


async def test_a_data_stream_that_is_there_has_its_template() -> None:
    server = Server(indices={"deepseek-logs": {".ds-deepseek-logs-2026.11.24-000001": {}}})
    assert (await outcomes(server, settings(index="deepseek-logs")))[-1].outcome == "created"


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (
            401,
            {"error": {"type": "security_exception", "reason": "unable to authenticate user [x]"}},
            "user and password, key or token are refused (401): check logs.elasticsearch.user and password, api_key or "
            "bearer_token",
        ),
        (
            403,
            {"error": {"type": "security_exception", "reason": "action [x] is unauthorized"}},
            "component template dsobs-logs@mappings: the right for it is missing (403); use a user with the role "
            "dsobs_logs_setup of `dsobs logs export roles`: security_exception: action [x] is unauthorized",
        ),
        (
            400,
            {"error": "no handler found for uri [/x]"},
            "component template dsobs-logs@mappings: refused with 400: no handler found for uri [/x]",
        ),
        (502, None, "component template dsobs-logs@mappings: refused with 502: "),
    ],
)
async def test_a_refusal_is_one_line_with_what_to_do(status: int, answer: Any, said: str) -> None:
    server = Server()
    server.refuse = (status, answer)
    with pytest.raises(InstallError) as refused:
        await outcomes(server, settings())
    assert str(refused.value) == said


def test_templates_take_data_streams_of_all_kinds_and_win_over_elasticsearchs_own() -> None:
    template = {one.name: one.body for one in resources(settings())}["dsobs-logs"]
    assert template["index_patterns"] == [STREAMS] == ["logs-dsobs.*-*"]
    assert template["data_stream"] == {}
    assert template["priority"] > 100
    assert template["ignore_missing_component_templates"] == [template["composed_of"][-1]]


@pytest.mark.parametrize("lifecycle", ["data-stream", "ilm", "none"])
@pytest.mark.parametrize("retention", [0, 86400])
def test_each_lifecycle_says_how_old_records_go(lifecycle: str, retention: int) -> None:
    made = {one.path: one.body for one in resources(settings(lifecycle=lifecycle, retention=retention))}
    template = made["_component_template/dsobs-logs@settings"]["template"]
    policy = made.get("_ilm/policy/dsobs-logs")
    assert (policy is not None) == (lifecycle == "ilm")
    assert template.get("lifecycle") == {
        ("data-stream", 0): {},
        ("data-stream", 86400): {"data_retention": "1d"},
    }.get((lifecycle, retention))
    assert template["settings"]["index"].get("lifecycle") == ({"name": "dsobs-logs"} if policy else None)
    if policy is not None:
        jsonschema.validate(policy, POLICY_SCHEMA)
        assert ("delete" in policy["policy"]["phases"]) == (retention > 0)


def test_the_failure_store_is_on_where_it_is_asked_for() -> None:
    for wanted in (True, False):
        made = {one.name: one.body for one in resources(settings(failure_store=wanted))}
        assert ("data_stream_options" in made["dsobs-logs@settings"]["template"]) == wanted


def test_no_field_has_two_types_and_none_is_below_another() -> None:
    names = [name for group in TYPES.values() for name in group]
    assert len(names) == len(set(names))
    assert not [(a, b) for a in names for b in names if b.startswith(f"{a}.")]
    assert mappings()["date_detection"] is False


def test_the_writer_may_only_add() -> None:
    made = roles(settings(index="deepseek-logs"))
    assert made[WRITER] == {
        "cluster": [],
        "indices": [{"names": [STREAMS, "deepseek-logs"], "privileges": ["create_doc", "auto_configure"]}],
    }
    assert made[READER]["cluster"] == []
    assert made[SETUP]["cluster"] == ["manage_index_templates"]
    assert roles(settings(lifecycle="ilm"))[SETUP]["cluster"] == ["manage_index_templates", "manage_ilm"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(30 * 86400, "30d"), (36 * 3600, "36h"), (90, "90s"), (120, "2m"), (0.2, "1s")]
)
def test_times_are_written_in_the_largest_exact_unit(seconds: float, text: str) -> None:
    assert time_value(seconds) == text
