"""What every log sink holds to. A test class inherits `SinkContract`, and gives the sink and a look at what it took."""

import abc
import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest_asyncio

from dsobs.logs.sinks import Answer, Sink


@dataclass(frozen=True)
class Taken:
    """One record, as the other side has it."""

    index: str
    id: str
    document: dict[str, Any]


def record(id_: str, **fields: Any) -> bytes:
    """The two lines of one record of a body."""
    document = {"@timestamp": "2026-11-24T08:00:00.000Z", "message": id_, **fields}
    return b'{"create":{"_id":"%b"}}\n%b\n' % (id_.encode(), orjson.dumps(document))


def ids(taken: list[Taken]) -> list[str]:
    """Sorted."""
    return sorted(one.id for one in taken)


class SinkContract(abc.ABC):
    """The suite. Index names begin with `logs-contract`, and are this test's own."""

    keeps_ids = True
    """A record that is there already is told apart; else it is there again, under the same id."""

    @abc.abstractmethod
    def opened(self) -> "Any":
        """An asynchronous context that gives the sink, open and with its other side."""

    @abc.abstractmethod
    async def taken(self) -> list[Taken]:
        """What the other side has."""

    @abc.abstractmethod
    async def go(self) -> None:
        """The other side goes away, so that nothing can be taken."""

    index = "logs-contract-a"
    other = "logs-contract-b"

    @pytest_asyncio.fixture
    async def sink(self) -> AsyncIterator[Sink]:
        """Closed at the end."""
        async with self.opened() as sink:
            try:
                yield sink
            finally:
                await sink.close()

    async def send(self, sink: Sink, *bodies: bytes, index: str = "") -> Answer:
        """One attempt."""
        return await asyncio.wait_for(sink.send(index or self.index, bodies, len(bodies)), 60)

    async def test_records_are_taken_whole_under_their_ids_in_their_index(self, sink: Sink) -> None:
        text = 'ümlaut \u2028 "quoted" \\ \x00 end'
        assert await self.send(sink, record("1", message=text, nested={"a": [1, None]})) == Answer(200)
        assert await self.send(sink, record("2"), record("3"), index=self.other) == Answer(200)
        found = {one.id: one for one in await self.taken()}
        assert {name: one.index for name, one in found.items()} == {"1": self.index, "2": self.other, "3": self.other}
        document = found["1"].document
        assert (document["message"], document["nested"]) == (text, {"a": [1, None]})

    async def test_a_body_may_come_in_any_pieces(self, sink: Sink) -> None:
        body = record("1") + record("2")
        answer = await asyncio.wait_for(sink.send(self.index, [body[:7], body[7:30], body[30:]], 2), 60)
        assert answer == Answer(200)
        assert ids(await self.taken()) == ["1", "2"]

    async def test_a_large_batch_is_taken_whole(self, sink: Sink) -> None:
        names = [f"{number:05d}" for number in range(5000)]
        assert await self.send(sink, *(record(name, padding="x" * 200) for name in names)) == Answer(200)
        assert ids(await self.taken()) == names

    async def test_a_record_that_is_there_is_known_or_there_again_under_its_id(self, sink: Sink) -> None:
        await self.send(sink, record("1"))
        answer = await self.send(sink, record("1"), record("2"))
        assert answer.status == 200
        assert {number: refusal.status for number, refusal in answer.refused.items()} == (
            {0: 409} if self.keeps_ids else {}
        )
        assert ids(await self.taken()) == (["1", "2"] if self.keeps_ids else ["1", "1", "2"])

    async def test_attempts_side_by_side_do_not_mix(self, sink: Sink) -> None:
        await asyncio.gather(
            *(
                self.send(sink, *(record(f"{batch}-{number:03d}", padding="y" * 2000) for number in range(100)))
                for batch in range(4)
            )
        )
        assert ids(await self.taken()) == [f"{batch}-{number:03d}" for batch in range(4) for number in range(100)]

    async def test_what_can_not_be_taken_is_said_and_never_raised(self, sink: Sink) -> None:
        await self.go()
        answer = await self.send(sink, record("1"))
        assert answer.status != 200
        assert answer.detail
        assert "\n" not in answer.detail

    async def test_it_can_be_closed_twice(self, sink: Sink) -> None:
        await self.send(sink, record("1"))
        await sink.close()
        await sink.close()
        assert ids(await self.taken()) == ["1"]
