"""A further replica beside an engine in Docker: where there is room for one, and how it is made. Pure functions of what
`GET /containers/{id}/json` says (Engine API 1.41) and of the cards' readings.

A replica is the engine's container once more, with a name, a published port and cards of its own. It has none of the
engine's network aliases, so that the engine's name stays one server. Of a Compose project's service it is one container
more, as `--scale` makes them, so that Compose lists it, stops it and removes it with the others.
"""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dsobs.model.observation import Gpu, Unknown

Json = Mapping[str, Any]

REPLICA_OF = "dsobs.io/replica-of"
"""Label of a replica, with the name of the engine's container: whoever made it, it counts."""
MADE_BY = "dsobs.io/made-by"
"""Label of those that dsobs made; no others are taken away."""
IDLE_SHARE = 0.02
"""A card with more of its memory in use than this is not free."""
_PROJECT, _SERVICE = "com.docker.compose.project", "com.docker.compose.service"
_NUMBER = "com.docker.compose.container-number"
"""`docker compose up` takes the container of the highest number away first, where there are more than it is to have."""
_FOREIGN_LABELS = ("com.docker.compose.replace", "com.docker.stack.", "com.docker.swarm.", "desktop.docker.io/")
_SWARM = "com.docker.swarm.service.name"
_VISIBLE = "NVIDIA_VISIBLE_DEVICES"
"""The variable by which NVIDIA's runtime gives cards."""
_SECRET = re.compile(r"(?i)(token|key|secret|passw|credential|auth)")
_SECRET_VALUE = re.compile(r"://[^/\s]*:[^/\s]*@|\b(?:sk-|hf_|nvapi-|ghp_|glpat-|eyJ)\w")
HIDDEN = "********"
"""In place of a secret in an argument."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where a further replica goes."""

    name: str
    cards: tuple[str, ...]
    """UUIDs."""
    ports: Mapping[str, list[dict[str, str]]]
    """As in `HostConfig.PortBindings`."""
    number: int = 2
    """Among the containers of the engine's Compose service."""


def name_of(told: Json) -> str:
    """Of a container, without Docker's slash."""
    return str(told["Name"]).lstrip("/")


def replicas_among(told: Iterable[Json], engine: str) -> list[Json]:
    """The further replicas of the container `engine`, oldest first."""
    found = [each for each in told if _labels(each).get(REPLICA_OF) == engine]
    return sorted(found, key=lambda each: str(each["Created"]))


def made_by_dsobs(told: Json) -> bool:
    """Whether dsobs may take it away."""
    return _labels(told).get(MADE_BY) == "dsobs"


def next_name(engine: str, names: Collection[str]) -> str:
    """The first of `vllm-replica-2`, `-3`, … that no container has."""
    number = 2
    while f"{engine}-replica-{number}" in names:
        number += 1
    return f"{engine}-replica-{number}"


def room(
    engine: Json, others: Sequence[Json], cards: tuple[Gpu, ...] | Unknown, taken: Collection[int] = ()
) -> Room | Unknown:
    """Where one more may go; Unknown says why nowhere. `others`: all containers but the engine's; `taken`: ports that
    were found to be in use."""
    host = engine["HostConfig"]
    if service := _labels(engine).get(_SWARM):
        return Unknown(f"it is a task of the Swarm service {service}")
    if _shares_its_network(engine):
        return Unknown(f"it shares its network ({host['NetworkMode']}), where its port is taken")
    free = free_cards(engine, others, cards)
    if isinstance(free, Unknown):
        return free
    ports = free_ports(engine, others, taken)
    if isinstance(ports, Unknown):
        return ports
    name = next_name(name_of(engine), {name_of(each) for each in others})
    return Room(name, free, ports, next_number(engine, others))


def next_number(engine: Json, others: Iterable[Json]) -> int:
    """Above those that Compose has given to containers of the engine's service."""
    mine = _labels(engine)
    numbers = [1]
    for each in map(_labels, (engine, *others)):
        if (each.get(_PROJECT), each.get(_SERVICE)) == (mine.get(_PROJECT), mine.get(_SERVICE)):
            numbers += [int(number)] if (number := str(each.get(_NUMBER))).isdigit() else []
    return max(numbers) + 1


# Cards.


def given(told: Json) -> tuple[str, ...] | Unknown:
    """The cards that a container is given, as indexes or UUIDs; none: no card to compute on. Unknown: not these in
    particular."""
    host, env = told["HostConfig"], _env(told)
    requests = [each for each in host.get("DeviceRequests") or () if _computes(each)]
    if host.get("Privileged") or any("nvidia" in str(each.get("PathOnHost")) for each in host.get("Devices") or ()):
        return Unknown("it sees all cards, as devices of the host")
    if len(requests) > 1 or any(each.get("Driver") not in (None, "", "nvidia") for each in requests):
        return Unknown("its device requests are none that can be told apart")
    visible = ""
    if requests:
        ids, count = requests[0].get("DeviceIDs") or (), int(requests[0].get("Count") or 0)
        # Docker's nvidia driver takes the first `count` cards, whoever has them.
        visible = ",".join(ids) if ids else "all" if count < 0 else ",".join(map(str, range(count)))
    elif host.get("Runtime") == "nvidia":
        visible = env.get(_VISIBLE, "")
    if visible in ("", "none", "void"):
        return ()
    if visible == "all":
        return Unknown("it is given all cards")
    return tuple(part.strip() for part in visible.split(",") if part.strip())


def _computes(request: Json) -> bool:
    """Not only to read them, as monitors do."""
    wanted = {name for group in request.get("Capabilities") or () for name in group}
    return bool(wanted & {"gpu", "compute"}) and not ("utility" in wanted and "compute" not in wanted)


def free_cards(engine: Json, others: Sequence[Json], cards: tuple[Gpu, ...] | Unknown) -> tuple[str, ...] | Unknown:
    """UUIDs of as many as the engine has, that nobody is given and nobody uses, of the same product; Unknown says why
    there are not so many."""
    own = given(engine)
    if isinstance(own, Unknown):
        return Unknown(f"which cards the engine has is not known: {own.reason}; name them in its device requests")
    if not own:
        return Unknown("the engine has no GPU, and another one would share this machine's processor")
    if isinstance(cards, Unknown):
        return Unknown(f"whether a card is free is not known: {cards.reason}")
    mine = _matching(own, cards)
    if isinstance(mine, Unknown):
        return Unknown(f"the engine's cards are not among those that dsobs sees: {mine.reason}")
    reserved = set(mine)
    for each in others:
        wanted = given(each) if _lives(each) else ()
        # One that is given all is judged by the memory in use: monitors ask for all.
        if not isinstance(wanted, Unknown):
            found = _matching(wanted, cards)
            if isinstance(found, Unknown):
                return Unknown(f"which cards {name_of(each)} has is not known: {found.reason}")
            reserved |= set(found)
    kinds = {card.name for card in cards if card.uuid in mine}
    if "" in kinds:
        return Unknown("which product the engine's cards are is not known")
    free = [
        card.uuid for card in cards if card.uuid and card.uuid not in reserved and card.name in kinds and _idle(card)
    ]
    if len(free) < len(mine):
        return Unknown(f"{len(free)} of {len(cards)} cards are free, and a replica takes {len(mine)}")
    return tuple(free[: len(mine)])


def _matching(ids: Iterable[str], cards: Sequence[Gpu]) -> tuple[str, ...] | Unknown:
    found = []
    for id_ in ids:
        fits = [
            card.uuid
            for card in cards
            if (str(card.index) == id_ if id_.isdigit() else id_.startswith("GPU-") and card.uuid.startswith(id_))
        ]
        if len(fits) != 1:
            return Unknown(f"{id_} is none of them")
        found += fits
    return tuple(found)


def _idle(card: Gpu) -> bool:
    used, total = card.memory_used_bytes, card.memory_total_bytes
    known = not card.unknown and used is not None and total is not None
    return known and not card.processes and used < IDLE_SHARE * total  # type: ignore[operator]


def _lives(told: Json) -> bool:
    """It runs, or Docker starts it again."""
    policy = ((told["HostConfig"].get("RestartPolicy") or {}).get("Name")) or "no"
    return told["State"]["Status"] not in ("exited", "dead") or policy != "no"


# Ports.


def free_ports(
    engine: Json, others: Iterable[Json], taken: Collection[int]
) -> dict[str, list[dict[str, str]]] | Unknown:
    """The engine's published ports, each as the next one above that no container publishes."""
    used = {*taken}
    for told in (engine, *others):
        for bindings in (told["HostConfig"].get("PortBindings") or {}).values():
            used |= {int(each["HostPort"]) for each in bindings or () if str(each.get("HostPort", "")).isdigit()}
    chosen: dict[str, list[dict[str, str]]] = {}
    for inside, bindings in (engine["HostConfig"].get("PortBindings") or {}).items():
        chosen[inside] = []
        for binding in bindings or ():
            text = str(binding.get("HostPort") or "")
            if text and not text.isdigit():
                return Unknown(f"it publishes a range of ports ({text})")
            port = text and next((port for port in range(int(text) + 1, 65536) if port not in used), None)
            if port is None:
                return Unknown(f"no port above {text} is free")
            used |= {port} if isinstance(port, int) else set()
            chosen[inside].append({"HostIp": str(binding.get("HostIp") or ""), "HostPort": str(port)})
    return chosen


# Making it.


def definition(engine: Json, place: Room) -> dict[str, Any]:
    """The body of `POST /containers/create`, without networks but the first."""
    config, host = dict(engine["Config"]), dict(engine["HostConfig"])
    if str(engine["Id"]).startswith(str(config.get("Hostname") or "-")):
        config.pop("Hostname")
    config.pop("MacAddress", None)
    # As it runs, whatever the tag means by now.
    config["Image"] = engine["Image"]
    labels = {key: value for key, value in _labels(engine).items() if not key.startswith(_FOREIGN_LABELS)}
    if _NUMBER in labels:
        labels[_NUMBER] = str(place.number)
    config["Labels"] = {**labels, REPLICA_OF: name_of(engine), MADE_BY: "dsobs"}
    host.pop("ContainerIDFile", None)
    host["PortBindings"] = place.ports
    if host.get("DeviceRequests"):
        host["DeviceRequests"] = [
            {**each, "Count": 0, "DeviceIDs": list(place.cards)} if _computes(each) else each
            for each in host["DeviceRequests"]
        ]
    else:
        others = [pair for pair in config.get("Env") or () if not pair.startswith(f"{_VISIBLE}=")]
        config["Env"] = [*others, f"{_VISIBLE}={','.join(place.cards)}"]
    first = next(iter(networks(engine)), None)
    connected: dict[str, Json] = {first: {}} if first is not None else {}
    return {**config, "HostConfig": host, "NetworkingConfig": {"EndpointsConfig": connected}}


def networks(told: Json) -> list[str]:
    """Those that it is in, the one of its network mode first."""
    mode = str(told["HostConfig"].get("NetworkMode") or "default")
    names = list(told["NetworkSettings"].get("Networks") or {})
    return sorted(names, key=lambda name: name != mode)


def url_of(target: str, engine: Json, replica: Json) -> str | Unknown:
    """Where the replica is reached from where `target` is the engine."""
    parts = urlsplit(target)
    host, port = parts.hostname or "", _port(target)
    mine, its = (each["NetworkSettings"].get("Networks") or {} for each in (engine, replica))
    for network, own in mine.items():
        names = {name_of(engine), *(own.get("Aliases") or ()), *(own.get("DNSNames") or ())}
        address = (its.get(network) or {}).get("IPAddress")
        if host in names and network in its:
            return f"{parts.scheme}://{name_of(replica)}:{port}"
        if host and host == own.get("IPAddress") and address:
            return f"{parts.scheme}://{address}:{port}"
    published = engine["HostConfig"].get("PortBindings") or {}
    if _shares_its_network(engine):
        published = {f"{port}/tcp": [{"HostPort": port}]}
    for inside, bindings in published.items():
        if any(str(each.get("HostPort")) == str(port) for each in bindings or ()):
            its_own = (replica["HostConfig"].get("PortBindings") or {}).get(inside) or ()
            its_port = next((str(each["HostPort"]) for each in its_own if each.get("HostPort")), "")
            if its_port:
                return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{its_port}"
    return Unknown(f"how {name_of(replica)} is reached is not known from {target}")


# For people.


def command(engine: Json, image: Json, name: str, target: str) -> str:
    """`docker run` of a further replica by the engine's definition, where `CARDS` and `PORT` are to be chosen; `image`
    is the image's own configuration, `target` the engine's address. Secrets are left out: a variable is then named
    only, so that the caller's own is taken."""
    config, host = engine["Config"], engine["HostConfig"]
    if service := _labels(engine).get(_SWARM):
        return shlex.join(["docker", "service", "scale"]) + f" {shlex.quote(service)}=REPLICAS"
    words = ["docker", "run", "--detach", "--name", name, "--label", f"{REPLICA_OF}={name_of(engine)}"]
    for key, value in _labels(engine).items():
        if not key.startswith((*_FOREIGN_LABELS, "com.docker.compose.")) and not _hides(key, value):
            words += ["--label", f"{key}={value}"] if (image.get("Labels") or {}).get(key) != value else []
    words += _placed(engine, target)
    words += _limited(host)
    for flag, key in (("--user", "User"), ("--workdir", "WorkingDir"), ("--stop-signal", "StopSignal")):
        words += [flag, config[key]] if config.get(key) and config[key] != image.get(key) else []
    words += ["--stop-timeout", str(config["StopTimeout"])] if config.get("StopTimeout") is not None else []
    for bind in host.get("Binds") or ():
        words += ["--volume", bind]
    for mount in host.get("Mounts") or ():
        fields = [f"type={mount['Type']}", f"source={mount.get('Source', '')}", f"target={mount['Target']}"]
        words += ["--mount", ",".join(fields + (["readonly"] if mount.get("ReadOnly") else []))]
    for pair in config.get("Env") or ():
        key, _, value = pair.partition("=")
        if pair not in (image.get("Env") or ()) and not (key == _VISIBLE and host.get("Runtime") == "nvidia"):
            words += ["--env", key if _hides(key, value) else pair]
    entry, cmd = list(config.get("Entrypoint") or ()), list(config.get("Cmd") or ())
    if entry and entry != list(image.get("Entrypoint") or ()):
        words += ["--entrypoint", entry[0]]
        cmd = [*entry[1:], *cmd]
    text = shlex.join([*words, str(config["Image"]), *_without_secrets(cmd)])
    others = [] if _shares_its_network(engine) else networks(engine)[1:]
    return " && ".join([text, *(shlex.join(["docker", "network", "connect", each, name]) for each in others)])


def _placed(engine: Json, target: str) -> list[str]:
    """Restart policy, network, cards and ports."""
    host = engine["HostConfig"]
    policy = host.get("RestartPolicy") or {}
    name = str(policy.get("Name") or "no")
    most = policy.get("MaximumRetryCount")
    words = [] if name == "no" else ["--restart", f"{name}:{most}" if most else name]
    bindings = host.get("PortBindings") or {}
    if _shares_its_network(engine):
        # There its port is taken: this one has a network of its own.
        bindings = {f"{_port(target)}/tcp": [{}]}
    elif (mode := str(host.get("NetworkMode") or "default")) not in ("default", "bridge"):
        words += ["--network", mode]
    if host.get("Runtime") == "nvidia":
        words += ["--runtime", "nvidia", "--env", f"{_VISIBLE}=CARDS"]
    elif host.get("DeviceRequests"):
        words += ["--gpus", '"device=CARDS"']
    for inside, published in bindings.items():
        for each in published or ():
            words += ["--publish", ":".join(filter(None, (each.get("HostIp"), "PORT", inside)))]
    return words


def _limited(host: Json) -> list[str]:
    """Limits, rights and what else of the host it is given."""
    words = ["--shm-size", str(host["ShmSize"])] if host.get("ShmSize") not in (None, 0, 67108864) else []
    for flag, key in (("--ipc", "IpcMode"), ("--pid", "PidMode")):
        words += [flag, "host"] if host.get(key) == "host" else []
    for flag, key in (("--privileged", "Privileged"), ("--read-only", "ReadonlyRootfs"), ("--init", "Init")):
        words += [flag] if host.get(key) else []
    words += ["--memory", str(host["Memory"])] if host.get("Memory") else []
    words += ["--cpus", f"{host['NanoCpus'] / 1e9:g}"] if host.get("NanoCpus") else []
    words += ["--cpuset-cpus", host["CpusetCpus"]] if host.get("CpusetCpus") else []
    for each in host.get("Ulimits") or ():
        words += ["--ulimit", f"{each['Name']}={each['Soft']}:{each['Hard']}"]
    for flag, key in (
        ("--cap-add", "CapAdd"),
        ("--cap-drop", "CapDrop"),
        ("--security-opt", "SecurityOpt"),
        ("--group-add", "GroupAdd"),
        ("--add-host", "ExtraHosts"),
    ):
        # A profile is kept as its text, where the option takes a file.
        words += [word for value in host.get(key) or () if not value.startswith("seccomp={") for word in (flag, value)]
    for each in host.get("Devices") or ():
        words += ["--device", ":".join((each["PathOnHost"], each["PathInContainer"], each["CgroupPermissions"]))]
    for path, options in (host.get("Tmpfs") or {}).items():
        words += ["--tmpfs", f"{path}:{options}" if options else path]
    return words


def _without_secrets(words: Sequence[str]) -> list[str]:
    shown: list[str] = []
    hide = False
    for word in words:
        name, equals, _ = word.partition("=")
        option = word.startswith("-")
        if hide or (_SECRET_VALUE.search(word) and not (option and equals)):
            shown.append(HIDDEN)
        elif option and equals and (_is_secret(name) or _SECRET_VALUE.search(word)):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(word)
        hide = option and not equals and _is_secret(word)
    return shown


def _hides(key: str, value: str) -> bool:
    """A variable or label that looks like a secret."""
    return bool(_SECRET.search(key) or _SECRET_VALUE.search(value))


def _is_secret(option: str) -> bool:
    return bool(re.search(r"(?i)(api-?key|[-_]token$|secret|passw|credential)", option))


def _env(told: Json) -> dict[str, str]:
    return dict(pair.partition("=")[::2] for pair in told["Config"].get("Env") or ())


def _labels(told: Json) -> Mapping[str, str]:
    return told["Config"].get("Labels") or {}


def _shares_its_network(told: Json) -> bool:
    """With the host or with another container."""
    mode = str(told["HostConfig"].get("NetworkMode") or "default")
    return mode == "host" or mode.startswith("container:")


def _port(target: str) -> int:
    parts = urlsplit(target)
    return parts.port or (443 if parts.scheme == "https" else 80)
