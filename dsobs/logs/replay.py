"""Dead letters sent again, after what was wrong has been mended.

The file is renamed first, so that a running shipper begins a new one; what is refused again goes there. What could not
be tried stays in the renamed file, which the next replay begins with.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from dsobs.logs.dead_letters import DeadLetters
from dsobs.logs.failures import TRANSFORM_FAILED, Seldom, transformed
from dsobs.logs.retry import Action, decide
from dsobs.logs.sinks import Answer, Refusal, Sink
from dsobs.logs.transforms import Transform

BATCH_RECORDS = 500
BATCH_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Replayed:
    """What became of the letters."""

    sent: int = 0
    duplicates: int = 0
    """Were there already."""
    refused: int = 0
    """Dead letters again."""
    left_out: int = 0
    """By a transform that they had not been through."""
    unreadable: int = 0
    """Lines that are no letters; they stay in `NAME.unreadable`."""
    left: int = 0
    """Not tried, because of `trouble`."""
    trouble: str = ""


@dataclass(slots=True)
class _Batch:
    index: str = ""
    records: list[bytes] = field(default_factory=list)
    size: int = 0
    failed: list[tuple[bytes, Refusal]] = field(default_factory=list)
    """Those that a transform fails on again."""


def waiting(directory: Path) -> list[Path]:
    """Files with dead letters, oldest first."""
    renamed = sorted(directory.glob("dead-letters-*.ndjson"))
    current = directory / "dead-letters.ndjson"
    return renamed + [current] * current.exists()


def reasons(directory: Path) -> Counter[tuple[str, str]]:
    """(index, type of the refusal) → letters. OSError."""
    counted: Counter[tuple[str, str]] = Counter()
    for path in waiting(directory):
        with path.open("rb") as file:
            for line in file:
                letter = _read(line)
                if letter is not None:
                    counted[letter[0], letter[2]] += 1
    return counted


async def replay(directory: Path, sink: Sink, now: float, transforms: Sequence[Transform] = ()) -> Replayed:
    """Sends all dead letters of `directory`; `now` is Unix seconds. OSError; DeadLettersFullError.

    `transforms`: what those go through first that a transform had failed on; a secret must not get past it so.
    """
    done = Replayed()
    paths = _take(directory, now)
    while paths:
        path = paths.pop(0)
        at = 0
        with contextlib.closing(_batches(path, done, transforms)) as batches:
            for batch, end in batches:
                if not await _send(batch, sink, DeadLetters(directory), done, now):
                    break
                at = end
        if done.trouble:
            _keep_from(path, at)
            done.left = sum(map(_count, [path, *paths]))
            return done
        path.unlink()
    return done


def _take(directory: Path, now: float) -> list[Path]:
    """The files, oldest first, none of which is written to any more."""
    current = directory / "dead-letters.ndjson"
    if current.exists():
        number = int(now * 1000)
        while (taken := directory / f"dead-letters-{number}.ndjson").exists():
            number += 1
        current.rename(taken)
    return waiting(directory)


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


async def _send(batch: _Batch, sink: Sink, letters: DeadLetters, done: Replayed, now: float) -> bool:
    """Whether all of it was decided."""
    count = len(batch.records)
    answer = await sink.send(batch.index, batch.records, count) if count else Answer(200)
    if answer.status != 200:
        action = decide(answer.status, answer.type, 1, count=count).action
        if action is Action.SPLIT:
            for number, record in enumerate(batch.records):
                if not await _send(_Batch(batch.index, [record], len(record)), sink, letters, done, now):
                    # Those before it are decided; sent again, they are there already.
                    done.sent -= number
                    return False
            if batch.failed:
                letters.add(batch.index, batch.failed, now)
                done.refused += len(batch.failed)
            return True
        if action is not Action.DEAD_LETTER:
            done.trouble = answer.detail or f"answered {answer.status}"
            return False
        refusals = dict.fromkeys(range(count), Refusal(answer.status or 0, answer.type, answer.detail))
        answer = Answer(200, refusals)
    bad = []
    for number, refusal in answer.refused.items():
        action = decide(refusal.status, refusal.type, 1).action
        if action is Action.DONE:
            done.duplicates += 1
        elif action is Action.DEAD_LETTER:
            bad.append((batch.records[number], refusal))
        else:
            done.trouble = f"{refusal.type or refusal.status}: {refusal.reason}"
            return False
    bad += batch.failed
    if bad:
        letters.add(batch.index, bad, now)
    done.refused += len(bad)
    done.sent += count - len(answer.refused)
    return True


def _batches(path: Path, done: Replayed, transforms: Sequence[Transform]) -> Generator[tuple[_Batch, int], None, None]:
    """(neighbours of one index, offset behind them)."""
    batch = _Batch()
    at = 0
    with path.open("rb") as file:
        for line in file:
            letter = _read(line)
            if letter is None:
                done.unreadable += 1
                with path.with_name("dead-letters.unreadable").open("ab") as aside:
                    aside.write(line)
            else:
                index, record, type_ = letter
                full = len(batch.records) >= BATCH_RECORDS or batch.size >= BATCH_BYTES
                if batch.size and (full or index != batch.index):
                    yield batch, at
                    batch = _Batch()
                batch.index = index
                batch.size += len(record)
                if type_ == TRANSFORM_FAILED:
                    _transform(record, transforms, batch, done)
                else:
                    batch.records.append(record)
            at += len(line)
    if batch.size:
        yield batch, at


def _read(line: bytes) -> tuple[str, bytes, str] | None:
    """(index, the two lines that are sent, type of the refusal)."""
    try:
        letter = orjson.loads(line)
        record = orjson.dumps(letter["action"]) + b"\n" + orjson.dumps(letter["document"]) + b"\n"
        return str(letter["index"]), record, str(letter.get("type") or letter.get("status", ""))
    except (ValueError, KeyError, TypeError):
        return None


def _transform(record: bytes, transforms: Sequence[Transform], batch: _Batch, done: Replayed) -> None:
    """Adds to `batch` what they make of a record that one of them had failed on."""
    action, document, _ = record.split(b"\n")
    records, failed = transformed(transforms, [(0, document, orjson.loads(document))], Seldom())
    batch.records += [
        b"%b\n%b\n" % (action, made if isinstance(made, bytes) else orjson.dumps(made, default=str))
        for _, _, made in records
    ]
    batch.failed += [(record, why) for _, why in failed]
    done.left_out += not (records or failed)


def _keep_from(path: Path, offset: int) -> None:
    """Leaves in the file what stands from `offset` on."""
    if not offset:
        return
    part = path.with_suffix(".part")
    with path.open("rb") as old, part.open("wb") as new:
        os.chmod(part, 0o600)  # noqa: PTH101
        old.seek(offset)
        while block := old.read(1024 * 1024):
            new.write(block)
        new.flush()
        os.fsync(new.fileno())
    part.replace(path)
