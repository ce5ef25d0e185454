"""Where a further replica of a container goes, and how it is made; the daemon's own word is in tests/real."""

import copy
from typing import Any

import pytest

from dsobs.model.observation import Gpu, GpuProcess, Unknown
from dsobs.runtimes.docker_replicas import (
    MADE_BY,
    REPLICA_OF,
    Room,
    command,
    definition,
    free_cards,
    free_ports,
    given,
    next_name,
    next_number,
    room,
    url_of,
)

GIB = 1 << 30


def container(name: str = "vllm", cards: tuple[str, ...] = ("0",), **host: Any) -> dict[str, Any]:
    request = {"Driver": "", "Count": 0, "DeviceIDs": list(cards), "Capabilities": [["gpu"]]}
    return {
        "Id": f"{name}0123456789",
        "Name": f"/{name}",
        "Image": "sha256:1",
        "State": {"Status": "running"},
        "Config": {
            "Hostname": f"{name}0123",
            "Image": "vllm/vllm-openai:v1",
            "Entrypoint": ["vllm", "serve"],
            "Cmd": ["--model", "m"],
            "Env": ["PATH=/bin", "MODE=fast"],
            "Labels": {"com.docker.compose.project": "p", "team": "chat"},
        },
        "HostConfig": {
            "NetworkMode": "default",
            "RestartPolicy": {"Name": "always"},
            "PortBindings": {"8000/tcp": [{"HostIp": "", "HostPort": "8000"}]},
            "DeviceRequests": [request] if cards else None,
            **host,
        },
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2", "Aliases": None}}},
    }


def requested(**request: Any) -> dict[str, Any]:
    return container(DeviceRequests=[{"Capabilities": [["gpu"]], **request}])


def card(index: int, used: int | None = 0, **more: Any) -> Gpu:
    return Gpu(index, f"GPU-{index}", "H200", 140 * GIB, None if used is None else used * GIB, **more)


TARGET = "http://127.0.0.1:8000"
CARDS = (card(0, 130), card(1), card(2))


@pytest.mark.parametrize(
    ("told", "cards"),
    [
        (container(cards=("0", "GPU-1")), ("0", "GPU-1")),
        # Docker's driver gives the first ones, whoever has them.
        (requested(Count=2), ("0", "1")),
        (requested(Count=-1, Capabilities=[["utility"]]), ()),
        (requested(Count=-1, Capabilities=[["gpu", "utility"]]), ()),
        (container(cards=()), ()),
    ],
)
def test_cards_that_a_container_is_given(told: dict[str, Any], cards: tuple[str, ...]) -> None:
    assert given(told) == cards


@pytest.mark.parametrize(
    "told",
    [
        requested(Count=-1),
        requested(Driver="cdi", DeviceIDs=["nvidia.com/gpu=0"]),
        container(Privileged=True),
        container(cards=(), Devices=[{"PathOnHost": "/dev/nvidia0"}]),
    ],
)
def test_cards_that_can_not_be_told_are_unknown(told: dict[str, Any]) -> None:
    assert isinstance(given(told), Unknown)


@pytest.mark.parametrize(("visible", "cards"), [("1", ("1",)), ("0,GPU-2", ("0", "GPU-2")), ("void", ()), ("", ())])
def test_cards_by_the_variable_of_nvidias_runtime(visible: str, cards: tuple[str, ...]) -> None:
    told = container(cards=(), Runtime="nvidia")
    told["Config"]["Env"].append(f"NVIDIA_VISIBLE_DEVICES={visible}")
    assert given(told) == cards
    told["HostConfig"]["Runtime"] = "runc"
    assert given(told) == ()


def test_free_card_is_one_that_nobody_is_given_and_nobody_uses() -> None:
    assert free_cards(container(), [], CARDS) == ("GPU-1",)
    assert free_cards(container(), [container("b", ("1",))], CARDS) == ("GPU-2",)
    assert free_cards(container(cards=("0",)), [container("b", ("GPU-1",))], CARDS) == ("GPU-2",)


def test_container_that_has_ended_for_good_reserves_nothing_and_one_that_docker_starts_again_does() -> None:
    ended = container("b", ("1",))
    ended["State"]["Status"] = "exited"
    assert free_cards(container(), [ended], CARDS) == ("GPU-2",)
    ended["HostConfig"]["RestartPolicy"] = {"Name": "no"}
    assert free_cards(container(), [ended], CARDS) == ("GPU-1",)


@pytest.mark.parametrize(
    "busy",
    [
        card(1, 20),
        card(1, None),
        card(1, 0, unknown="lost"),
        card(1, 0, processes=(GpuProcess(1, 0),)),
        Gpu(1, "GPU-1", "L4", 24 * GIB, 0),
        Gpu(1, "GPU-1", "", 24 * GIB, 0),
    ],
)
def test_card_in_use_unknown_or_of_another_product_is_not_free(busy: Gpu) -> None:
    found = free_cards(container(), [], (card(0, 130), busy))
    assert found == Unknown("0 of 2 cards are free, and a replica takes 1")


@pytest.mark.parametrize(
    ("engine", "others", "cards", "why"),
    [
        (container(), [], Unknown("NVML is not there"), "whether a card is free is not known: NVML is not there"),
        (container(cards=()), [], CARDS, "the engine has no GPU"),
        (requested(Count=-1), [], CARDS, "which cards the engine has is not known: it is given all cards"),
        (
            container(),
            [],
            (Gpu(0, "GPU-0", "", GIB, 0), Gpu(1, "GPU-1", "", GIB, 0)),
            "which product the engine's cards are is not known",
        ),
        (container(cards=("7",)), [], CARDS, "not among those that dsobs sees: 7"),
        (container(cards=("MIG-1",)), [], CARDS, "not among those that dsobs sees: MIG-1"),
        (container(), [container("b", ("MIG-1",))], CARDS, "which cards b has is not known"),
        (container(cards=("0", "1")), [], CARDS, "1 of 3 cards are free, and a replica takes 2"),
        (container(NetworkMode="host"), [], CARDS, "shares its network"),
        (container(PortBindings={"8000/tcp": [{"HostPort": "8000-8010"}]}), [], CARDS, "a range of ports"),
    ],
)
def test_what_is_not_known_or_not_free_is_no_room(
    engine: dict[str, Any], others: list[dict[str, Any]], cards: tuple[Gpu, ...] | Unknown, why: str
) -> None:
    found = room(engine, others, cards)
    assert isinstance(found, Unknown)
    assert why in found.reason


def test_task_of_a_swarm_service_is_left_to_swarm_with_its_command() -> None:
    engine = container()
    engine["Config"]["Labels"]["com.docker.swarm.service.name"] = "chat"
    assert room(engine, [], CARDS) == Unknown("it is a task of the Swarm service chat")
    assert command(engine, {}, "vllm-replica-2", TARGET) == "docker service scale chat=REPLICAS"


def test_port_is_the_next_that_no_container_publishes_one_that_has_ended_included() -> None:
    other = container("b", PortBindings={"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8001"}]})
    other["State"]["Status"] = "exited"
    assert free_ports(container(), [other], {8002}) == {"8000/tcp": [{"HostIp": "", "HostPort": "8003"}]}
    assert free_ports(container(PortBindings={}), [other], ()) == {}


def test_name_is_the_first_that_no_container_has() -> None:
    assert next_name("vllm", {"vllm", "vllm-2", "vllm-replica-2"}) == "vllm-replica-3"


def test_definition_is_the_engines_but_for_what_must_differ_and_the_engines_stays_as_it_was() -> None:
    engine = container(ShmSize=123, Binds=["models:/models"])
    before = copy.deepcopy(engine)
    made = definition(engine, Room("vllm-replica-2", ("GPU-1",), {"8000/tcp": [{"HostIp": "", "HostPort": "8001"}]}))
    assert engine == before
    assert "Hostname" not in made
    assert (made["Image"], made["Cmd"], made["Env"]) == ("sha256:1", ["--model", "m"], ["PATH=/bin", "MODE=fast"])
    assert made["Labels"] == {
        "com.docker.compose.project": "p",
        "team": "chat",
        REPLICA_OF: "vllm",
        MADE_BY: "dsobs",
    }
    host = made["HostConfig"]
    assert (host["ShmSize"], host["Binds"]) == (123, ["models:/models"])
    assert host["DeviceRequests"][0] | {"Driver": ""} == before["HostConfig"]["DeviceRequests"][0] | {
        "DeviceIDs": ["GPU-1"]
    }
    assert host["PortBindings"]["8000/tcp"][0]["HostPort"] == "8001"


def of_compose(name: str, number: str, service: str = "chat") -> dict[str, Any]:
    told = container(name)
    told["Config"]["Labels"] = {
        "com.docker.compose.project": "p",
        "com.docker.compose.service": service,
        "com.docker.compose.container-number": number,
        "com.docker.compose.config-hash": "abc",
        "com.docker.compose.replace": "vllm-old",
    }
    return told


def test_replica_of_a_compose_service_is_one_container_more_of_it() -> None:
    engine = of_compose("vllm", "1")
    there = [of_compose("vllm-replica-2", "2"), of_compose("other", "7", service="web"), container("plain")]
    assert next_number(engine, there) == 3
    assert next_number(container(), []) == 2
    place = room(engine, [], CARDS)
    assert isinstance(place, Room)
    assert definition(engine, place)["Labels"] == {
        "com.docker.compose.project": "p",
        "com.docker.compose.service": "chat",
        "com.docker.compose.container-number": "2",
        "com.docker.compose.config-hash": "abc",
        REPLICA_OF: "vllm",
        MADE_BY: "dsobs",
    }


def test_own_host_name_stays_and_the_variable_of_nvidias_runtime_names_the_card() -> None:
    engine = container(cards=(), Runtime="nvidia")
    engine["Config"] |= {"Hostname": "chat", "Env": ["NVIDIA_VISIBLE_DEVICES=0"]}
    made = definition(engine, Room("r", ("GPU-1",), {}))
    assert (made["Hostname"], made["Env"]) == ("chat", ["NVIDIA_VISIBLE_DEVICES=GPU-1"])


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("http://vllm:8000", "http://vllm-replica-2:8000"),
        ("http://chat:8000", "http://vllm-replica-2:8000"),
        ("http://172.17.0.2:8000", "http://172.17.0.3:8000"),
        ("https://127.0.0.1:8000", "https://127.0.0.1:8001"),
        ("http://[::1]:8000", "http://[::1]:8001"),
    ],
)
def test_replica_is_reached_as_the_engine_is(target: str, url: str) -> None:
    engine, replica = container(), container("vllm-replica-2")
    engine["NetworkSettings"]["Networks"]["bridge"]["Aliases"] = ["chat"]
    replica["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] = "172.17.0.3"
    replica["HostConfig"]["PortBindings"]["8000/tcp"][0]["HostPort"] = "8001"
    assert url_of(target, engine, replica) == url


def test_replica_of_an_engine_on_the_hosts_network_is_reached_by_the_port_that_it_publishes() -> None:
    engine = container(NetworkMode="host", PortBindings={})
    engine["NetworkSettings"]["Networks"] = {"host": {}}
    replica = container("vllm-replica-2")
    replica["HostConfig"]["PortBindings"]["8000/tcp"][0]["HostPort"] = "8001"
    assert url_of(TARGET, engine, replica) == "http://127.0.0.1:8001"


def test_replica_whose_address_can_not_be_told_is_unknown() -> None:
    assert isinstance(url_of("http://elsewhere:1", container(), container("r")), Unknown)


def test_command_has_the_definition_and_no_secret() -> None:
    engine = container(Binds=["models:/models"], ShmSize=2 * GIB, IpcMode="host")
    engine["Config"]["Labels"] |= {"basic.auth.users": "me:verysecret", "of.image": "1"}
    engine["Config"]["Env"] += ["HF_TOKEN=hf_verysecret", "PROXY=http://me:verysecret@proxy", "NAME=two words"]
    engine["Config"]["Cmd"] += ["--api-key", "verysecret", "--ssl-key-password=verysecret", "--max-tokens", "5"]
    image = {"Env": ["PATH=/bin"], "Entrypoint": ["vllm", "serve"], "Labels": {"of.image": "1"}}
    text = command(engine, image, "vllm-replica-2", TARGET)
    assert "verysecret" not in text
    assert text == (
        "docker run --detach --name vllm-replica-2 --label dsobs.io/replica-of=vllm --label team=chat "
        "--restart always --gpus '\"device=CARDS\"' --publish PORT:8000/tcp --shm-size 2147483648 --ipc host "
        "--volume models:/models --env MODE=fast --env HF_TOKEN --env PROXY --env 'NAME=two words' "
        "vllm/vllm-openai:v1 --model m --api-key '********' '--ssl-key-password=********' --max-tokens 5"
    )


def test_command_has_limits_rights_and_further_networks() -> None:
    engine = container(
        NetworkMode="serving",
        RestartPolicy={"Name": "on-failure", "MaximumRetryCount": 3},
        Memory=8 * GIB,
        NanoCpus=2_500_000_000,
        Ulimits=[{"Name": "memlock", "Soft": -1, "Hard": -1}],
        CapAdd=["CAP_SYS_NICE"],
        SecurityOpt=["no-new-privileges", 'seccomp={"defaultAction": "SCMP_ACT_ALLOW"}'],
        Devices=[{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"}],
        Tmpfs={"/scratch": ""},
        Init=True,
    )
    engine["Config"] |= {"Labels": None, "Env": [], "StopTimeout": 120}
    engine["NetworkSettings"]["Networks"] = {"metrics": {}, "serving": {}}
    assert command(engine, {"Entrypoint": ["vllm", "serve"]}, "r", TARGET) == (
        "docker run --detach --name r --label dsobs.io/replica-of=vllm --restart on-failure:3 --network serving "
        "--gpus '\"device=CARDS\"' --publish PORT:8000/tcp --init --memory 8589934592 --cpus 2.5 "
        "--ulimit memlock=-1:-1 --cap-add CAP_SYS_NICE --security-opt no-new-privileges "
        "--device /dev/fuse:/dev/fuse:rwm --tmpfs /scratch --stop-timeout 120 vllm/vllm-openai:v1 --model m "
        "&& docker network connect metrics r"
    )


def test_command_gives_cards_by_nvidias_runtime_where_the_engine_has_them_so() -> None:
    engine = container(cards=(), Runtime="nvidia")
    engine["Config"] |= {"Labels": None, "Env": ["NVIDIA_VISIBLE_DEVICES=0"]}
    text = command(engine, {}, "r", TARGET)
    assert text.count("NVIDIA_VISIBLE_DEVICES") == 1
    assert "--runtime nvidia --env NVIDIA_VISIBLE_DEVICES=CARDS" in text
    assert "--gpus" not in text


@pytest.mark.parametrize("mode", ["host", "container:other"])
def test_command_for_an_engine_that_shares_a_network_publishes_a_port_of_its_own(mode: str) -> None:
    text = command(container(NetworkMode=mode, PortBindings={}), {}, "r", "http://127.0.0.1:9000")
    assert "--network" not in text
    assert "--publish PORT:9000/tcp" in text
