"""Further replicas of an engine in Docker: looked at, made and taken away by the Docker Engine API."""

import asyncio
import contextlib
import json
from typing import Any
from urllib.parse import quote

from dsobs.model.observation import Gpu, Unknown
from dsobs.model.runtime import RuntimeHeld, RuntimeRefused
from dsobs.model.scaling import NoRoom, Replicas
from dsobs.runtimes import docker_replicas as containers
from dsobs.runtimes.docker_daemon import Daemon, DaemonError
from dsobs.runtimes.docker_replicas import Json, Room, name_of

MAX_CONTAINERS = 1000
PORT_TRIES = 16
"""Ports that turn out to be in use, by what is no container."""
CREATE_SECONDS = 60.0
STOP_SECONDS = 10.0
"""Docker's own grace where the container names none."""
STOP_SLACK_SECONDS = 15.0
_IN_USE = ("port is already allocated", "address already in use")


class ContainerReplicas:
    """Of the container of one engine. What the daemon refuses is a `DaemonError`; nothing is left half made."""

    def __init__(self, daemon: Daemon, engine: str, target: str) -> None:
        """`engine`: its container's name; `target`: its address."""
        self._daemon = daemon
        self._engine = engine
        self._target = target

    async def look(self) -> Replicas:
        """The engine and its replicas, as they are."""
        engine = await self._inspect(self._engine)
        found = await self._replicas(engine)
        running = [each for each in found if each["State"]["Running"] and not each["State"].get("Paused")]
        urls = [containers.url_of(self._target, engine, each) for each in running if _is_healthy(each)]
        servers = tuple(url for url in urls if not isinstance(url, Unknown))
        return Replicas(
            f"container {name_of(engine)}",
            1 + len(running),
            1 + len(servers),
            # One that was never started is what is left of a dsobs that ended meanwhile.
            pods=1 + len([each for each in found if each["State"]["Status"] != "created"]),
            servers=servers,
        )

    async def no_room(self, cards: tuple[Gpu, ...] | Unknown) -> NoRoom | None:
        """Why there is no place for one more, and the command for a person."""
        async with asyncio.timeout(self._daemon.timeout):
            engine, others = await self._all()
            place = containers.room(engine, others, cards)
            if not isinstance(place, Unknown):
                return None
            image: Json = {}
            with contextlib.suppress(DaemonError):
                image = (await self._daemon.json(f"/images/{quote(engine['Image'], safe='')}/json")).get("Config") or {}
            name = containers.next_name(name_of(engine), {name_of(each) for each in others})
            return NoRoom(place.reason, containers.command(engine, image, name, self._target))

    async def set(self, before: Replicas, to: int, cards: tuple[Gpu, ...] | Unknown) -> str:
        """One more or one fewer, unless their number is another by now."""
        async with asyncio.timeout(self._daemon.timeout):
            now = await self.look()
        if now.wanted != before.wanted:
            raise RuntimeHeld(f"there are {now.wanted} replicas meanwhile")
        return await (self._add(cards) if to > now.wanted else self._take_away())

    # One more.

    async def _add(self, cards: tuple[Gpu, ...] | Unknown) -> str:
        taken: set[int] = set()
        for _ in range(PORT_TRIES):
            async with asyncio.timeout(self._daemon.timeout):
                engine, others = await self._all()
                for left in await self._replicas(engine):
                    if left["State"]["Status"] == "created" and containers.made_by_dsobs(left):
                        await self._remove(left["Id"])
                others = [each for each in others if each["State"]["Status"] != "created"]
                place = containers.room(engine, others, cards, taken)
            if isinstance(place, Unknown):
                raise RuntimeRefused(place.reason)
            try:
                await self._make(engine, place)
            except DaemonError as error:
                if not any(words in str(error) for words in _IN_USE):
                    raise
                taken |= {int(each["HostPort"]) for some in place.ports.values() for each in some if each["HostPort"]}
            else:
                where = [f"port {each['HostPort']}" for some in place.ports.values() for each in some]
                where += [f"card {card}" for card in place.cards]
                return f"{place.name} was started ({', '.join(where)})"
        raise RuntimeRefused(f"{PORT_TRIES} ports above the engine's are in use")

    async def _make(self, engine: Json, place: Room) -> None:
        async with asyncio.timeout(CREATE_SECONDS):
            body = containers.definition(engine, place)
            answer = await self._daemon.call("POST", "/containers/create", {"name": place.name}, body=body)
            made = json.loads(answer)["Id"]
            try:
                for network in containers.networks(engine)[1:]:
                    path = f"/networks/{quote(network, safe='')}/connect"
                    await self._daemon.call("POST", path, {}, body={"Container": made})
                await self._daemon.call("POST", f"/containers/{made}/start", {})
            except DaemonError:
                await self._remove(made)
                raise

    async def _remove(self, container: str) -> None:
        with contextlib.suppress(DaemonError):
            await self._daemon.call("DELETE", f"/containers/{container}", {"force": "1"})

    # One fewer.

    async def _take_away(self) -> str:
        async with asyncio.timeout(self._daemon.timeout):
            found = await self._replicas(await self._inspect(self._engine))
        made = [each for each in found if containers.made_by_dsobs(each) and each["State"]["Running"]]
        if not made:
            raise RuntimeHeld("dsobs made none of the replicas, and takes away only those")
        last = made[-1]
        grace = last["Config"].get("StopTimeout")
        grace = STOP_SECONDS if grace is None else max(float(grace), 0.0)
        async with asyncio.timeout(grace + STOP_SLACK_SECONDS):
            # It has its own stop signal and grace to finish what it has.
            await self._daemon.call("POST", f"/containers/{last['Id']}/stop", {})
        await self._remove(last["Id"])
        return f"{name_of(last)} was stopped and removed"

    # Asking.

    async def _all(self) -> tuple[Json, list[Json]]:
        engine = await self._inspect(self._engine)
        return engine, await self._listed({}, engine["Id"])

    async def _replicas(self, engine: Json) -> list[Json]:
        filters = {"label": [f"{containers.REPLICA_OF}={name_of(engine)}"]}
        return containers.replicas_among(await self._listed(filters, engine["Id"]), name_of(engine))

    async def _listed(self, filters: dict[str, list[str]], but: str) -> list[Json]:
        told = await self._daemon.json("/containers/json", {"all": "1", "filters": json.dumps(filters)})
        if len(told) > MAX_CONTAINERS:
            raise ValueError(f"more than {MAX_CONTAINERS} containers")
        found = []
        for each in told:
            if each["Id"] != but:
                # One that has ended meanwhile is none.
                with contextlib.suppress(DaemonError):
                    found.append(await self._inspect(each["Id"]))
        return found

    async def _inspect(self, container: str) -> Any:
        return await self._daemon.json(f"/containers/{quote(container, safe='')}/json")


def _is_healthy(told: Json) -> bool:
    """By its health check, where it has one."""
    health = told["State"].get("Health") or {}
    return health.get("Status", "none") in ("none", "healthy")
