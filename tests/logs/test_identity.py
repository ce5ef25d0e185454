"""Names, first lines and keys."""

from pathlib import Path

import pytest

from dsobs.logs.identity import HEAD_BYTES, fingerprint, identity_key, stem


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("app.log", "app.log"),
        ("app.log.1", "app.log"),
        ("app.log.12.gz", "app.log"),
        ("app.log-20261124", "app.log"),
        ("app.log-20261124-1795507200", "app.log"),
        ("app.log.2026-11-24", "app.log"),
        ("0.log.20261124-075152.gz", "0.log"),
        ("server.8000", "server.8000"),
        ("engine-1.log", "engine-1.log"),
        ("worker-2", "worker-2"),
        ("app-2026-11-24.log", "app-2026-11-24.log"),
    ],
)
def test_a_rotated_name_has_the_stem_of_the_live_one(name: str, expected: str) -> None:
    assert stem(Path("/logs") / name) == f"/logs/{expected}"


def test_a_fingerprint_waits_for_the_first_line_or_enough_of_it() -> None:
    assert fingerprint(b"") is None
    assert fingerprint(b"half a li") is None
    assert fingerprint(b"half a li", complete=True) is not None
    assert fingerprint(b"line\nmore") == fingerprint(b"line\nother") != fingerprint(b"line 2\n")
    assert fingerprint(b"x" * HEAD_BYTES) == fingerprint(b"x" * HEAD_BYTES + b"y\n")


def test_a_key_says_origin_stem_and_first_line() -> None:
    found = fingerprint(b"line\n")
    assert found is not None
    key = identity_key("host", Path("/a/app.log"), found)
    assert len(key) == 16
    assert identity_key("host", Path("/a/app.log.1"), found) == key
    assert identity_key("other", Path("/a/app.log"), found) != key
    assert identity_key("host", Path("/b/app.log"), found) != key
