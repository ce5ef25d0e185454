"""Starting, up, down, stopped on purpose, unresponsive: the engine's life from outside.

An engine never yet up is starting, and so is each new instance of it until it is up, however its port fails. Gone
counts as down when the runtime says that the process ended with nobody seen to stop it, when an instance that was up
refuses three scrapes though its process lives (an API server whose core died sometimes fails to exit), or when no
runtime can be asked and the port refused three scrapes. A planned stop is only one that was witnessed; an exit code
proves nothing, since crashed engines exit with 0 in some versions. While somebody has it paused, or has asked it to
end, its silence is planned too.

Connections that are accepted and closed with not one byte are what a port forwarder (Docker's, for a published port)
makes of a refusal, so they are no sign of a server that stands still. But a server or a proxy at its limit of
connections turns them away like that too, which is no outage: an instance that was up is down by them only if `/health`
fares the same, and where its process is known to live only after some seconds.

Who stops an instance on purpose is answerable for its end and no other: when the next one ends before it is up, that is
a crash. A witness may come late; then what was down turns out to be planned.
"""

from dsobs.model.observation import Failure, Health, Observation, RuntimeView, Unknown
from dsobs.model.samples import Sample, labels

REFUSALS = 3
"""Scrapes refused in a row that count as gone where no runtime knows better."""
CLOSED_SECONDS = 10.0
"""A living process whose port closes every connection is gone after this: longer than a burst of clients lasts that
fills a limit of connections, since a page for a server that only is busy is worse than one that comes seconds later."""
SICK_HEALTH_SECONDS = 10.0
"""`/health` answering 5xx for this long on an engine that was ready: its core died and the API server did not exit."""


class Lifecycle:
    """Follows one server."""

    def __init__(self, *, seen: bool = False, was_up: bool | None = None, was_ready: bool | None = None) -> None:
        """`seen`: it answered before dsobs was restarted; `was_up`: so did the instance that was there last;
        `was_ready`: which was ready."""
        self.seen = seen
        self.up = False
        self.ready = False
        self.starting_since: float | None = None
        self.down_since: float | None = None
        self.down_reason = ""
        self.planned_stop: str | None = None
        self.planned_since: float | None = None
        self.unresponsive_since: float | None = None
        self.sick_since: float | None = None
        self._own_stop: str | None = None
        self._own_until = float("-inf")
        self._own_began = False
        """The instance that dsobs's own restart leads to has begun."""
        self._began: float | None = None
        """Start of the present instance on dsobs's own clock."""
        self._looked_at = float("-inf")
        """When the runtime was asked last."""
        self._refused = 0
        """Scrapes in a row that were refused."""
        self._away = 0
        """Scrapes in a row that nobody took: refused, or closed with not one byte."""
        self._first_away: float | None = None
        self._health_away = False
        """Nobody took the last `/health` either."""
        self.was_up = seen if was_up is None else was_up
        """The present or last instance was up."""
        self.was_ready = self.was_up if was_ready is None else was_ready
        """The present or last instance was ready."""
        self._planned_by_own = False
        """It is dsobs itself that is answerable for the present planned stop."""
        self._held = False
        """The present planned stop is a silence: somebody paused the instance, or has asked it to end."""
        self._stopping: str | None = None
        """Who was asking the instance to end when the runtime could be asked last; None once it was up after that."""

    def expect_own_stop(self, who: str, until: float) -> None:
        """dsobs itself restarts the engine: its going away is planned until a new instance is up, which begins before
        `until`."""
        self._own_stop = who
        self._own_until = until
        self._own_began = False

    def expect_own_stop_longer(self, until: float) -> None:
        """The engine has ended, and the new instance takes longer to begin."""
        self._own_until = max(self._own_until, until) if self._own_stop is not None else self._own_until

    def observe(self, obs: Observation, *, new_instance: bool) -> None:
        """Takes one observation; `new_instance`: a restart was just seen."""
        now, runtime, scrape = obs.at, obs.runtime, obs.scrape
        self.was_ready = self.was_ready and not new_instance
        if self._own_stop is not None and new_instance:
            if self._own_began:
                # The instance that dsobs brought about has ended, and another has begun.
                self._own_stop = None
            self._own_began = True
        if not self._own_began and now > self._own_until:
            self._own_stop = None
        if isinstance(runtime, RuntimeView):
            self._note_start(now, runtime, new_instance)
            self._stopping = runtime.stopping
        if scrape is not None:
            self.up = scrape.ok
            away = scrape.failure is not None and scrape.failure.is_away
            self._refused = self._refused + 1 if scrape.failure is Failure.REFUSED else 0
            self._away = self._away + 1 if away else 0
            self._first_away = (self._first_away or now) if away else None
            # A connection that is not even taken is a backlog that clients have filled: it stands still all the same.
            if scrape.answered or away or not (scrape.connected or scrape.failure is Failure.TIMEOUT):
                self.unresponsive_since = None
            elif self.unresponsive_since is None and self.was_up:
                self.unresponsive_since = now - scrape.duration_seconds
        elif new_instance:
            # It was the one before that was up; a scrape of this one has yet to end.
            self.up = False
        self._health(obs.health, now)
        if self.up:
            self._comes_up()
            if isinstance(runtime, Unknown):
                self._stopping = None
        elif isinstance(runtime, Unknown) or runtime.running is None:
            self._gone_unknown(now, self._stopping)
        elif runtime.running:
            self._running_not_up(now, runtime, new_instance, failed=scrape is not None)
        else:
            self._ended(now, runtime)

    def _note_start(self, now: float, runtime: RuntimeView, new_instance: bool) -> None:
        """An instance that is new began since the last look, whatever the wall clock was set to."""
        if runtime.running and runtime.started_at is not None and (new_instance or self._began is None):
            self._began = min(max(runtime.started_at, self._looked_at), now)
        self._looked_at = now

    def _health(self, health: Health | None, now: float) -> None:
        if health is None:
            if not self.up:
                self.ready = False
            return
        self._health_away = health.failure is not None and health.failure.is_away
        if health.status is not None or health.failure is not Failure.TIMEOUT:
            self.ready = health.ok and self.up
            self.was_ready = self.was_ready or self.ready
        if health.status is not None:
            self.unresponsive_since = None
        if health.status is not None and health.status >= 500 and self.was_up:
            self.sick_since = self.sick_since if self.sick_since is not None else now
        else:
            self.sick_since = None
        if self.sick_since is not None and now - self.sick_since >= SICK_HEALTH_SECONDS and self.up:
            self._down(self.sick_since, f"/health answers {health.status}: the engine's core is dead")

    def _comes_up(self) -> None:
        self.seen = True
        self.was_up = True
        self.starting_since = None
        self.planned_stop = None
        self.planned_since = None
        self._held = False
        if self._own_began:
            self._own_stop = None
        if self.sick_since is None:
            self.down_since = None
            self.down_reason = ""

    def _down(self, since: float, reason: str) -> None:
        if self.down_since is None:
            self.down_since = since
            self.down_reason = reason

    def _gone_unknown(self, now: float, witnessed: str | None) -> None:
        if not self.seen:
            self.starting_since = self.starting_since or now
        elif (gone := self._gone(now, 0.0)) is not None:
            self._stopped(self._first_away or now, witnessed, f"{gone}, and no runtime can be asked")

    def _gone(self, now: float, closed_seconds: float) -> str | None:
        """How the port shows that nobody is there; None while it does not. Where connections are closed, not refused,
        `/health` must fare the same, for `closed_seconds`."""
        if self._refused >= REFUSALS:
            return f"refused {REFUSALS} scrapes"
        if self._away < REFUSALS or not self._health_away or now - (self._first_away or now) < closed_seconds:
            return None
        return f"closed or refused {self._away} connections in a row with not one byte, and those for /health"

    def _running_not_up(self, now: float, runtime: RuntimeView, new_instance: bool, failed: bool) -> None:
        """The process is there and does not answer: starting, or only too busy to answer. `failed`: a scrape has."""
        if new_instance:
            self._held = False
            if self.seen:
                self._ends(now, runtime.planned_stop, "the engine ended and its runtime started it again")
            self.was_up = False
            self.unresponsive_since = None
        self._hold(now, runtime.stopping)
        if not self.was_up:
            if failed and self.starting_since is None:
                self.starting_since = self._began if self._began is not None else now
        elif (gone := self._gone(now, CLOSED_SECONDS)) is not None:
            self._stopped(self._first_away or now, runtime.stopping, f"{gone}, though its process lives")

    def _hold(self, now: float, witnessed: str | None) -> None:
        """An instance that somebody paused, or that he has asked to end, is silent for that."""
        if witnessed is None:
            if self._held:
                self._held, self.planned_stop, self.planned_since = False, None, None
        elif self.unresponsive_since is not None:
            self._held = True
            self._stopped(min(self.unresponsive_since, now), witnessed, "")
            self.unresponsive_since = None

    def _ended(self, now: float, runtime: RuntimeView) -> None:
        self._held = False
        self.starting_since = None if self.was_up else self.starting_since or now
        if not self.seen:
            return
        if self._own_began:
            # It is the new instance that ended.
            self._own_stop = None
        code = "" if runtime.exit_code is None else f" with exit code {runtime.exit_code}"
        memory = ", killed for memory" if runtime.oom_killed else ""
        self._ends(now, runtime.planned_stop, f"the engine's process ended{code}{memory}")

    def _ends(self, now: float, witnessed: str | None, reason: str) -> None:
        """By the runtime's own word."""
        # A planned stop that another instance has followed answers for no further end.
        if self.planned_stop is not None and not self.was_up and witnessed is None and self._own_stop is None:
            self.planned_stop = self.planned_since = None
        self._stopped(now, witnessed, reason)

    def _stopped(self, now: float, witnessed: str | None, reason: str) -> None:
        """An instance is gone. `witnessed`: who was seen to stop it."""
        if self._own_stop is not None:
            # A page that is open stays so: a restart is no repair yet.
            if self.down_since is None:
                self._plan(now, self._own_stop)
                self._planned_by_own = True
        elif witnessed is not None:
            self._plan(self.down_since if self.down_since is not None else now, witnessed)
            self._planned_by_own = False
            self.down_since, self.down_reason = None, ""
        elif self.planned_stop is None or self._planned_by_own:
            self.planned_stop = self.planned_since = None
            self._down(now, reason)

    def _plan(self, now: float, who: str) -> None:
        self.planned_since = self.planned_since if self.planned_stop is not None else now
        self.planned_stop = who

    def _available(self, starting: float, startup_budget: float) -> bool:
        """Ready, or away on purpose: by somebody else's planned stop, and until a start after it takes too long."""
        planned = self.planned_stop is not None and not self._planned_by_own
        return self.ready or (planned and starting <= startup_budget)

    def samples(self, now: float, startup_budget: float) -> list[Sample]:
        """The derived gauges."""
        starting = now - self.starting_since if self.starting_since is not None else 0.0
        planned = now - self.planned_since if self.planned_since is not None else 0.0
        silent = now - self.unresponsive_since if self.unresponsive_since is not None else 0.0
        return [
            Sample(labels("dsobs_engine_up"), float(self.up)),
            Sample(labels("dsobs_engine_seen"), float(self.seen)),
            Sample(labels("dsobs_engine_ready"), float(self.ready)),
            Sample(labels("dsobs_engine_available"), float(self._available(starting, startup_budget))),
            Sample(labels("dsobs_engine_down"), float(self.down_since is not None)),
            Sample(labels("dsobs_engine_planned_stop_seconds"), max(planned, 0.0)),
            Sample(labels("dsobs_engine_unresponsive_seconds"), max(silent, 0.0)),
            Sample(labels("dsobs_engine_starting_seconds"), max(starting, 0.0)),
            Sample(labels("dsobs_engine_startup_budget_seconds"), startup_budget),
        ]
