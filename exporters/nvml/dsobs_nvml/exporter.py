"""`dsobs-nvml`: a node's cards over HTTP and as a file for node_exporter, until SIGTERM."""

import gzip
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client.exposition import write_to_textfile
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from dsobs_nvml.driver import Nvml
from dsobs_nvml.page import CardCollector
from dsobs_nvml.pods import PodResources, PodWatch
from dsobs_nvml.reader import Reader
from dsobs_nvml.recorded import RecordedNvml
from dsobs_nvml.server import Server
from dsobs_nvml.settings import Settings, SettingsError, settings_of
from dsobs_nvml.source import NvmlSource

LOG = logging.getLogger("dsobs.nvml")

FIRST_READING_SECONDS = 10.0
"""The file waits this long for the first reading."""
BAD_SETTINGS, CANT_SERVE = 2, 1
"""Exit codes."""


def records_of(path: Path) -> list[Any]:
    """The readings of a recording, gzip'ed or not: of each line the value of `nvml`, or the line itself. SettingsError
    if it is none."""
    raw = path.read_bytes()
    records = []
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
        for line in filter(None, text.splitlines()):
            record = json.loads(line)
            records.append(record["nvml"] if isinstance(record, dict) and "nvml" in record else record)
    except (OSError, EOFError, ValueError) as error:
        raise SettingsError(f"--recording: {path} can't be read: {error}; it has a JSON object a line") from error
    return records


class Exporter:
    """All parts, from `start` to `stop`. `source`: what the settings name unless given."""

    def __init__(self, settings: Settings, source: NvmlSource | None = None) -> None:
        self._settings = settings
        if source is None and settings.recording is not None:
            source = RecordedNvml(records_of(settings.recording), settings.devices)
        elif source is None:
            source = Nvml(settings.devices)
        self.reader = Reader(source, settings.interval)
        costs = source.costs.copy if isinstance(source, Nvml) else dict
        self.pods = PodWatch(PodResources(settings.pod_resources)) if settings.pod_resources is not None else None
        hostname = settings.hostname if settings.dcgm_names else None
        self.cards = CardCollector(self.reader, self.pods, hostname, costs)
        self._file_registry = CollectorRegistry()
        self._file_registry.register(self.cards)
        self.server: Server | None = None
        if settings.listen is not None:
            registry = CollectorRegistry()
            registry.register(self.cards)
            # Only here: in the file these names would clash with node_exporter's own.
            ProcessCollector(registry=registry)
            self.server = Server(settings.listen, registry, self.reader)

    def start(self) -> None:
        """Begins to read and to serve."""
        self.reader.start()
        if self.pods is not None:
            self.pods.start()
            LOG.info("pods from %s (--pod-resources)", self._settings.pod_resources)
        if self.server is not None:
            self.server.start()
            LOG.info("serving on http://%s/metrics (--listen)", self.server.address)

    def write(self) -> None:
        """Writes the file once, whole or not at all; what goes wrong is told, and tried again at the next time."""
        path = self._settings.textfile
        if path is None:
            return
        try:
            write_to_textfile(str(path), self._file_registry)
        except OSError as error:
            LOG.error("%s can't be written: %s", path, error)

    def stop(self) -> None:
        """Ends, and takes the file away: node_exporter would go on telling the last values."""
        if self.server is not None:
            self.server.stop()
        if self.pods is not None:
            self.pods.stop()
        self.reader.stop()
        if self._settings.textfile is not None:
            self._settings.textfile.unlink(missing_ok=True)


def run(settings: Settings, stopping: threading.Event) -> int:
    """Until `stopping`; the exit code."""
    try:
        exporter = Exporter(settings)
    except OSError as error:
        print(f"dsobs-nvml: --listen: {error}", file=sys.stderr)
        return CANT_SERVE
    exporter.start()
    try:
        if settings.textfile is None:
            stopping.wait()
        else:
            LOG.info("writing %s every %g s (--textfile)", settings.textfile, settings.textfile_interval)
            exporter.reader.wait_for_first(FIRST_READING_SECONDS)
            exporter.write()
            while not stopping.wait(settings.textfile_interval):
                exporter.write()
    finally:
        exporter.stop()
    LOG.info("ended")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        settings = settings_of(sys.argv[1:] if arguments is None else arguments, os.environ)
        logging.basicConfig(
            level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
        )
        return run(settings, stopping)
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"dsobs-nvml: {line}", file=sys.stderr)
        return BAD_SETTINGS


if __name__ == "__main__":
    sys.exit(main())
