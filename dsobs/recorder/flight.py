"""The bounded recorder: segments of a minute, the oldest goes first; what SIGKILL leaves is readable to the last
second."""

import contextlib
import logging
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from dsobs.recorder.records import CHUNK, RecordError, decompressed, read_records
from dsobs.telemetry import RECORDER_BYTES, RECORDER_DROPPED

log = logging.getLogger(__name__)

SEGMENT_SECONDS = 60.0
LEVEL = 1


class FlightRecorder:
    """Writes records below `folder`, at most `max_bytes` in all; 0 records nothing.

    A disk that can't be written costs records, counted and said once, and nothing else.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
        self._began = 0.0
        self._sizes: dict[Path, int] = {}
        self._failed = False
        if max_bytes:
            with contextlib.suppress(OSError):  # said by the first write
                folder.mkdir(parents=True, exist_ok=True)
            self._sizes = {path: path.stat().st_size for path in self._segments()}

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob("flight-*.jsonl.gz"))

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record and hands it to the kernel."""
        if not self._max_bytes:
            return
        try:
            self._write(float(record["t"]), orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            RECORDER_DROPPED.labels("disk").inc()
            self._close()
            if not self._failed:
                self._failed = True
                log.warning("the flight recorder can't write, records are lost: %s", error)

    def _write(self, at: float, line: bytes) -> None:
        if self._file is None or not 0 <= at - self._began < SEGMENT_SECONDS:
            self._close()
            path = self._folder / f"flight-{at:017.3f}.jsonl.gz"
            self._file = path.open("ab", buffering=0)
            self._deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
            self._began = at
            self._sizes[path] = path.stat().st_size
        data = self._deflate.compress(line) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self._file.write(data)
        self._failed = False
        path = Path(self._file.name)
        self._sizes[path] += len(data)
        self._prune(path)

    def _prune(self, current: Path) -> None:
        total = sum(self._sizes.values())
        for path in sorted(self._sizes):
            if total <= self._max_bytes or path == current:
                break
            path.unlink(missing_ok=True)
            total -= self._sizes.pop(path)
        RECORDER_BYTES.set(total)

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write(self._deflate.flush(zlib.Z_FINISH))
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Ends the segment; legal twice."""
        self._close()

    def recent(self, since: float) -> Iterator[dict[str, Any]]:
        """The records from `since` on, oldest first; a damaged segment is passed over."""
        for path in self._segments():
            if float(path.name.removeprefix("flight-").removesuffix(".jsonl.gz")) < since - SEGMENT_SECONDS:
                continue
            try:
                for record in read_records(path):
                    if record["t"] >= since:
                        yield record
            except (RecordError, OSError) as error:
                log.warning("flight recorder: %s", error)

    def copy_recent(self, since: float, target: Path) -> int:
        """Copies the segments that hold records from `since` on into one file; its bytes. gzip members follow each
        other."""
        with target.open("wb") as out:
            for path in self._segments():
                if float(path.name.removeprefix("flight-").removesuffix(".jsonl.gz")) >= since - SEGMENT_SECONDS:
                    _copy_member(path, out)
            return out.tell()


def _copy_member(path: Path, out: BinaryIO) -> None:
    """A segment as a complete gzip member, also one that is still being written or was cut off.

    Chunk by chunk: a minute of a large page has more bytes than dsobs takes otherwise.
    """
    if _is_complete(path):
        with path.open("rb") as file:
            shutil.copyfileobj(file, out, CHUNK)
        return
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    rest = b""
    try:
        for chunk in decompressed(path):
            rest += chunk
            end = rest.rfind(b"\n") + 1
            out.write(deflate.compress(rest[:end]))
            rest = rest[end:]
    except RecordError as error:
        log.warning("flight recorder: %s", error)
    out.write(deflate.flush())


def _is_complete(path: Path) -> bool:
    """Whether a segment was ended in order."""
    inflate = zlib.decompressobj(31)
    with path.open("rb") as file, contextlib.suppress(zlib.error):
        while not inflate.eof and (data := inflate.unconsumed_tail or file.read(CHUNK)):
            inflate.decompress(data, CHUNK)
    return inflate.eof


def prune_bundles(folder: Path, max_bytes: int) -> None:
    """Keeps incident bundles under `max_bytes` in all; the oldest go first."""
    bundles = sorted(path for path in folder.glob("*") if path.is_dir())
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in bundles}
    total = sum(sizes.values())
    for path in bundles[:-1]:
        if total <= max_bytes:
            break
        shutil.rmtree(path)
        total -= sizes[path]
