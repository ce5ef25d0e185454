"""A process that wants the turn of a workload again and again, and tells when it had it.

    python -m tests.real.kubernetes.contender URL CA TOKEN NAMESPACE POD

prints `begin`, `step` and `end` with the machine's monotonic time, which all processes share.
"""

import asyncio
import random
import sys
import time

from dsobs.config.models import Remediation
from dsobs.model.runtime import RuntimeHeld
from dsobs.runtimes.kubernetes.coordination import LeaseTurn, Surroundings
from dsobs.runtimes.kubernetes.identity import Identity
from dsobs.runtimes.kubernetes.pod import Json
from tests.runtimes.kubernetes.accounts import api_of


def tell(what: str) -> None:
    """One line."""
    print(what, time.monotonic(), flush=True)


async def contend(url: str, ca: str, token: str, namespace: str, name: str) -> None:
    """Until it is killed."""
    api = api_of(url, token, Identity(namespace, name), ca=ca)
    pod = await api.pod()

    async def above(_: Json) -> None:
        return None

    around = Surroundings(lambda: pod, above, lambda _: ())
    turn = LeaseTurn(api, around, Remediation(fleet_breaker=1.0, fleet_max_actions=10**6))
    tell("ready")
    while True:
        try:
            async with turn.taken("i"):
                tell("begin")
                for _ in range(4):
                    await asyncio.sleep(0.25)
                    if turn.lost() is None:
                        tell("step")
            tell("end")
        except (RuntimeHeld, TimeoutError):
            pass
        await asyncio.sleep(random.uniform(0.0, 0.2))


if __name__ == "__main__":
    asyncio.run(contend(*sys.argv[1:]))
