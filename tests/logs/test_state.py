"""What is kept on disk: lost, old, corrupt, not writable, in use (faults 2 to 4)."""

import shutil
from pathlib import Path

import pytest

from dsobs.logs.checkpoint import Progress
from dsobs.logs.lag import Lag
from dsobs.logs.lock import LockedError, locked, owner
from dsobs.logs.ship import Shipper
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import QUICK, append, lines, named, settings, ship_once, shipping, size, until, write


def test_a_position_moves_only_over_contiguous_acknowledgements() -> None:
    progress = Progress(10)
    first, second, third = (progress.begin(end) for end in (20, 30, 40))
    progress.done(third)
    progress.done(second)
    assert progress.acknowledged == 10
    assert progress.outstanding
    progress.done(first)
    assert progress.acknowledged == 40
    assert not progress.outstanding


def test_a_position_never_moves_back() -> None:
    progress = Progress(10)
    progress.done(progress.begin(5))
    assert progress.acknowledged == 10


def test_lag_is_bounded_and_never_less_than_it_is() -> None:
    lag = Lag()
    for second in range(1, 1001):
        lag.saw(second * 100, float(second))
    assert lag.since(100_000) is None
    for second in range(1, 1001):
        lag.saw(100_000 + second * 100, 1000.0 + second)
    since = lag.since(100_000 + 50_000)
    assert since is not None
    # The first byte behind that offset came at second 1501; what is remembered is coarse, and no later.
    assert 1000.0 <= since <= 1501.0


@pytest.mark.fault(2)
async def test_an_older_checkpoint_leads_to_duplicates_at_most_never_to_a_gap(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log, state = tmp_path / "app.log", tmp_path / "state"
    append(log, lines(*range(10)))
    await ship_once(settings(server.url, log), state)
    shutil.copytree(state, tmp_path / "older")
    append(log, lines(*range(10, 20)))
    await ship_once(settings(server.url, log), state)
    append(log, lines(*range(20, 30)))
    # As after a power loss that took the last transaction.
    await ship_once(settings(server.url, log), tmp_path / "older")
    assert sorted(server.messages(), key=lambda text: int(text.split()[1])) == named(*range(30))
    assert server.duplicates == 10


@pytest.mark.fault(3)
async def test_a_corrupt_state_file_is_set_aside_and_everything_sent_again_under_the_same_ids(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log, state = tmp_path / "app.log", tmp_path / "state"
    append(log, lines(*range(10)))
    await ship_once(settings(server.url, log), state)
    write(state / "logs.db", "no database " * 1000)
    await ship_once(settings(server.url, log), state)
    assert server.duplicates == 10
    assert len(list(state.glob("logs.db.corrupt-*"))) == 1


@pytest.mark.fault(2, 3)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
async def test_a_torn_state_file_is_as_of_its_last_transaction_that_is_whole(
    server: ElasticsearchStandIn, tmp_path: Path, share: float
) -> None:
    log, state, torn = tmp_path / "app.log", tmp_path / "state", tmp_path / "torn"
    async with shipping(settings(server.url, log), state):
        for number in range(5):
            append(log, lines(number))
            await until(lambda number=number: len(server.documents) == number + 1)  # type: ignore[misc]
        # As a power loss leaves it: files as they are on disk now, the end of the log not written.
        shutil.copytree(state, torn)
    wal = torn / "logs.db-wal"
    wal.write_bytes(wal.read_bytes()[: int(wal.stat().st_size * share)])
    append(log, lines(5))
    await ship_once(settings(server.url, log), torn)
    assert sorted(server.messages()) == named(*range(6))
    assert not list(torn.glob("logs.db.corrupt-*"))


@pytest.mark.fault(4)
async def test_a_state_that_can_not_be_written_pauses_shipping_and_says_so(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, lines(1))

    def writable(yes: bool) -> None:
        db = shipper._checkpoints.db
        assert db._connection is not None
        connection, switch = db._connection, f"PRAGMA query_only={'OFF' if yes else 'ON'}"
        db._wait(db._submit(lambda _: connection.execute(switch)), 5.0)

    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: server.messages() == named(1))
        writable(False)
        append(log, lines(2))
        await until(lambda: (shipper.status().trouble or ("",))[0] == "state")
        append(log, lines(3))
        await until(lambda: shipper.status().total_bytes == size(log))
        assert named(3)[0] not in server.messages()
        writable(True)
        await until(lambda: sorted(server.messages()) == named(1, 2, 3))
        await until(lambda: shipper.status().trouble is None)


async def test_a_state_directory_in_use_is_refused_with_whose_it_is(tmp_path: Path) -> None:
    with locked(tmp_path / "state"):
        assert owner(tmp_path / "state")
        with pytest.raises(LockedError, match=r"in use by process \d+; stop that one, or give another --state"):
            await Shipper(settings(None, tmp_path / "app.log"), tmp_path / "state", pace=QUICK).run()
    assert owner(tmp_path / "state") is None
