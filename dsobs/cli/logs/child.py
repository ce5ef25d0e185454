"""The sidecar's shipping process: `python -m dsobs.cli.logs.child`. It can slow nothing down but itself.

Its settings are the first line of stdin, JSON as `dsobs.sidecar.shipping` writes it; it stops when stdin ends, which it
does however the sidecar ends. On stdout it writes one JSON object a tick: `samples`, its metrics as [name, labels,
value], and `status`. Its log goes to stderr, the sidecar's own.
"""

import asyncio
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from dsobs.cli import footprint
from dsobs.cli.exit_codes import ExitCode
from dsobs.cli.output import print_error
from dsobs.cli.own_log import configure_logging
from dsobs.config.logs import Logs
from dsobs.config.models import Log
from dsobs.logs.edge import EdgeShipper, open_shipper
from dsobs.logs.lock import LockedError
from dsobs.logs.metrics import REGISTRY
from dsobs.logs.ship import Shipper
from dsobs.logs.status import Status
from dsobs.state import StateError

NICE = 5
"""Where the processor is short, scraping and repair go first."""


async def ship(settings: dict[str, Any]) -> None:
    """Until stdin ends."""
    shipper = open_shipper(
        Logs.model_validate(settings["logs"]),
        Path(settings["directory"]),
        service=settings["service"],
        on_tick=_tell,
    )
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _stop_at_end, shipper)
    await shipper.run()


def _stop_at_end(shipper: Shipper | EdgeShipper) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        shipper.stop()


def _tell(status: Status) -> None:
    samples = [(one.name, one.labels, one.value) for metric in REGISTRY.collect() for one in metric.samples]
    try:
        sys.stdout.buffer.write(orjson.dumps({"samples": samples, "status": asdict(status)}) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The sidecar is gone; stdin says so too.
        pass


def main() -> int:
    """Exit status 2: started again it would fail in the same way."""
    footprint.one_heap()
    os.nice(NICE)
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:
        settings = orjson.loads(stdin.readline())
    configure_logging(Log.model_validate(settings["log"]))
    footprint.settle()
    try:
        asyncio.run(ship(settings))
    except LookupError as error:
        print_error(str(error.args[0]))
        return ExitCode.USAGE
    except ModuleNotFoundError as error:
        print_error(f"{error.name} is not installed; pip install 'dsobs[logs]'")
        return ExitCode.USAGE
    except (LockedError, StateError, OSError) as error:
        print_error(f"logs are not shipped: {error}")
        return ExitCode.FAILED
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
