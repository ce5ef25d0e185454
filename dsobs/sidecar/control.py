"""What people set while dsobs runs: silences and the API's kill switch. Both outlive it."""

import json
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from dsobs import silences
from dsobs.model.clock import Clock
from dsobs.sidecar.keeping import Keeping
from dsobs.silences import Silence
from dsobs.state import StateError

log = logging.getLogger(__name__)


class Control:
    """Changes are on disk before they hold."""

    def __init__(self, keeping: Keeping, clock: Clock, changed: Callable[[], None]) -> None:
        """`changed` puts other silences into effect."""
        self.killed = False
        """The API's kill switch is on."""
        self._keeping = keeping
        self._clock = clock
        self._changed = changed
        self._silences: list[Silence] = []

    def restore(self, connection: sqlite3.Connection) -> None:
        """What the last run left."""
        killed = connection.execute("SELECT value FROM facts WHERE name = 'killed'").fetchone()
        self.killed = bool(killed and json.loads(killed[0]))
        self._silences = silences.load(connection, self._clock.now())

    def active(self) -> list[Silence]:
        """Silences that have not ended."""
        now = self._clock.now()
        return [silence for silence in self._silences if silence.ends_at > now]

    async def silence(self, matchers: list[str], seconds: float, created_by: str, comment: str) -> Silence:
        """A new silence; MatcherError for a bad one, StateError if it can't be kept."""
        made = silences.new(matchers, self._clock.now(), seconds, created_by, comment)
        await self._keeping.write(partial(silences.save, silence=made))
        self._silences.append(made)
        # It holds once this is answered, not a turn later.
        self._changed()
        return made

    async def expire(self, id_: str) -> bool:
        """Ends a silence now; False if there is none of that id."""
        found = next((silence for silence in self.active() if silence.id == id_), None)
        if found is None:
            return False
        await self._keeping.write(partial(silences.save, silence=replace(found, ends_at=self._clock.now())))
        self._silences = [silence for silence in self._silences if silence.id != id_]
        self._changed()
        return True

    async def switch(self, *, killed: bool) -> None:
        """Sets or clears the kill switch; StateError if it holds but can't be kept."""
        self.killed = killed
        log.warning("kill switch by API: %s", "on" if killed else "off")
        value = json.dumps(killed)
        try:
            await self._keeping.write(
                lambda c: c.execute("INSERT OR REPLACE INTO facts VALUES ('killed', ?)", (value,))
            )
        except StateError as error:
            raise StateError(f"the switch holds until dsobs ends, but can't be kept: {error}") from error
