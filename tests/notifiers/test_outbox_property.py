"""Whatever happens, a receiver ends up with what was said last."""

import asyncio
from typing import Literal, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Answer
from dsobs.notifiers.outbox import SCHEMA
from dsobs.state import StateDb
from tests.contracts.notifier_contract import a_notification
from tests.notifiers.virtual import VirtualTime

Weather: TypeAlias = Literal["fine", "refusing", "away", "losing answers", "failing", "limiting"]
WEATHERS: tuple[Weather, ...] = ("fine", "refusing", "away", "losing answers", "failing", "limiting")


class Receiver:
    """PagerDuty's memory without its wire."""

    name = "receiver"

    def __init__(self) -> None:
        self.weather: Weather = "fine"
        self.taken: list[Notification] = []

    def accepts(self, notification: Notification) -> bool:
        return True

    async def send(self, notification: Notification) -> Answer:
        match self.weather:
            case "away":
                return Answer(detail="no connection", arrived=False)
            case "limiting":
                return Answer(429)
            case "failing":
                return Answer(503)
            case "losing answers":
                self.taken.append(notification)
                return Answer(detail="no answer in time")
            case "refusing":
                return Answer(302)
        self.taken.append(notification)
        return Answer(202)


KEYS = ("a", "b", "c")
STEPS = st.one_of(
    st.tuples(st.just("say"), st.sampled_from(KEYS), st.sampled_from(Event)),
    st.tuples(st.just("weather"), st.sampled_from(WEATHERS)),
    st.tuples(st.just("pass"), st.sampled_from([0.1, 1.0, 30.0, 400.0])),
    st.tuples(st.just("restart")),
    st.tuples(st.just("from memory"), st.sampled_from(KEYS), st.sampled_from(Event)),
)


async def play(steps: list[tuple[str, ...]]) -> None:
    time, receiver = VirtualTime(), Receiver()
    said: dict[str, list[Notification]] = {key: [] for key in KEYS}
    db = StateDb(":memory:", SCHEMA)
    try:
        left = iter(steps)
        finished = False
        while not finished:
            async with time.running(db, [receiver]) as outbox:
                for step in left:
                    match step:
                        case ("say" | "from memory" as how, key, event):
                            # The number in `details` tells events of one key apart.
                            new = a_notification(
                                Event(event), dedup_key=key, details={"n": str(len(said[key]))}, at=time.clock.now()
                            )
                            said[key].append(new)
                            if how == "say":
                                await outbox.put([new])
                            else:
                                outbox.enqueue_in_memory([new])
                                await time.quiet(outbox)
                        case ("weather", weather):
                            receiver.weather = weather  # type: ignore[assignment]
                        case ("pass", seconds):
                            await time.pass_by(outbox, float(seconds))
                        case _:
                            break
                else:
                    finished = True
                    receiver.weather = "fine"
                    await time.until(outbox, lambda outbox=outbox: outbox.pending == 0)  # type: ignore[misc]
    finally:
        db.close()
    for key in KEYS:
        taken = [notification for notification in receiver.taken if notification.dedup_key == key]
        numbers = [int(notification.details["n"]) for notification in taken]
        assert numbers == sorted(numbers), f"{key}: out of order: {numbers}"
        wanted = said[key][-1].event if said[key] else Event.RESOLVE
        reached = taken[-1].event if taken else Event.RESOLVE
        assert reached is wanted, f"{key}: said {wanted}, reached {reached}"


def from_memory_then_restart(steps: list[tuple[str, ...]]) -> bool:
    """What is only in memory may die with the process: no promise for that."""
    names = [step[0] for step in steps]
    return "from memory" in names and "restart" in names


@settings(max_examples=120, deadline=None)
@given(st.lists(STEPS, max_size=14).filter(lambda steps: not from_memory_then_restart(steps)))
def test_receiver_ends_with_the_last_event_of_each_key_and_never_sees_them_out_of_order(
    steps: list[tuple[str, ...]],
) -> None:
    asyncio.run(play(steps))
