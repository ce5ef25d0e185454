"""`dsobs`, killed by SIGKILL at the COUNTth moment at which something takes effect, once the file ARMED is there.

`python -m tests.acceptance.run_until_killed ARMED COUNT run …`; COUNT 0: it lives. The moments: before and after each
commit of the state file, each restart by the runtime (also while it is under way) and each page. The last one goes into
ARMED as JSON.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dsobs.cli import main
from dsobs.notifiers.webhook import WebhookNotifier
from dsobs.rules.evaluator import Evaluator
from dsobs.runtimes.process import ProcessRuntime
from dsobs.state import StateDb

ARMED, COUNT = Path(sys.argv[1]), int(sys.argv[2])
UNDER_WAY_SECONDS = 0.03
_passed: list[str] = []


def moment(name: str) -> None:
    """Dies here if it is this one's turn."""
    if not ARMED.exists():
        return
    _passed.append(name)
    if len(_passed) == COUNT:
        ARMED.write_text(json.dumps(name), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def _hook() -> None:
    commit, restart, send = StateDb._transaction, ProcessRuntime.restart, WebhookNotifier.send

    def transaction(self: StateDb, work: Any) -> Any:
        changes = self._connection.total_changes if self._connection is not None else 0

        def last(connection: Any) -> Any:
            result = work(connection)
            if connection.total_changes != changes:
                moment("before a commit")
            return result

        result = commit(self, last)
        if self._connection is not None and self._connection.total_changes != changes:
            moment("after a commit")
        return result

    async def restarting(self: ProcessRuntime, **how: Any) -> Any:
        moment("before the restart")
        task = asyncio.ensure_future(restart(self, **how))
        await asyncio.wait({task}, timeout=UNDER_WAY_SECONDS)
        moment("restart under way")
        result = await task
        moment("after the restart")
        return result

    async def sending(self: WebhookNotifier, notification: Any) -> Any:
        moment("before a page")
        result = await send(self, notification)
        moment("after a page")
        return result

    StateDb._transaction = transaction  # type: ignore[method-assign]
    ProcessRuntime.restart = restarting  # type: ignore[method-assign]
    WebhookNotifier.send = sending  # type: ignore[method-assign]


if __name__ == "__main__":
    if COUNT:
        _hook()
    # A restored alert's absence counts sooner, or every trial would take 15 s more.
    assert Evaluator.__init__.__kwdefaults__
    Evaluator.__init__.__kwdefaults__["restore_grace"] = 3.0
    sys.exit(main(sys.argv[3:]))
