"""The sweep: puts back what the queue forgot, and removes nothing that was promised and is not kept."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from ingest.cli import main
from ingest.config.model import Config
from ingest.errors import IngestError, LedgerError
from ingest.ledger import Ledger
from ingest.queue import sweep
from ingest.queue.client import connect
from ingest.queue.keys import persisted_key, stream_key
from ingest.queue.stream_writer import append_references
from ingest.spool import inventory
from ingest.spool.reference import Location, Reference, parse_fields
from ingest.spool.spool import Spool
from tests.support.ledgers import hold, row
from tests.support.spools import claim, config, keep


@pytest.fixture
def client(settings: Config) -> Iterator[redis.Redis]:
    made = connect(settings)
    yield made
    made.close()


def references(client: redis.Redis, spool: Spool) -> list[Reference]:
    return [Reference(*parse_fields(fields)) for _, fields in client.xrange(stream_key(spool.id))]


# --- what waits


def test_what_waits_is_listed_oldest_first_and_only_files_that_are_ready(own: Spool) -> None:
    places = [keep(own) for _ in range(5)]
    own.begin()
    (own.slot.path / "ready" / "note.txt").write_text("no instance")
    assert inventory.list_waiting(own.root, "L0") == [Location(where) for where in places]
    assert inventory.measure_usage(own.root) == 5 * len(b"data")
    assert inventory.list_slots(own.root) == ["L0"]


def test_only_slots_count_as_slots(own: Spool) -> None:
    for name in ("L1", "L10", "Lx", "lost+found"):
        (own.root / name).mkdir()
    assert inventory.list_slots(own.root) == ["L0", "L1", "L10"]


def test_what_became_ready_just_now_is_left_to_its_listener(own: Spool) -> None:
    keep(own)
    assert inventory.list_waiting(own.root, "L0", older_than=60) == []
    assert len(inventory.list_waiting(own.root, "L0", older_than=0)) == 1


def test_what_a_clock_that_was_ahead_has_dated_does_not_wait_for_that_time(
    own: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(own)
    an_hour_ago = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: an_hour_ago)
    assert len(inventory.list_waiting(own.root, "L0", older_than=3)) == 1


def test_a_spool_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert inventory.list_slots(tmp_path / "none") == []
    assert inventory.list_waiting(tmp_path / "none", "L0") == []
    assert inventory.measure_usage(tmp_path / "none") == 0


# --- what the queue forgot


def test_references_on_the_stream_are_read_page_by_page(
    own: Spool, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 7)
    places = [f"L0/ready/{number}.dcm" for number in range(50)]
    append_references(client, [Reference("spool", own.id, where) for where in places])
    assert list(sweep.read_stream_locations(client, own.id)) == [(where.encode(), b"0") for where in places]


def test_missing_is_what_waits_and_is_not_on_the_stream(own: Spool, client: redis.Redis) -> None:
    places = [keep(own) for _ in range(4)]
    append_references(client, [Reference("spool", own.id, where) for where in places[:2]])
    assert sweep.find_missing(own.root, own.id, client, ["L0"], 0.0) == [
        Location(where) for where in places[2:]
    ]


def test_a_reference_into_the_middle_of_a_file_is_none_to_the_file(own: Spool, client: redis.Redis) -> None:
    where = keep(own)
    append_references(client, [Reference("spool", own.id, where, offset=512, length=4)])
    assert sweep.find_missing(own.root, own.id, client, ["L0"], 0.0) == [Location(where)]


def test_junk_on_the_stream_does_not_end_a_sweep(own: Spool, client: redis.Redis) -> None:
    where = keep(own)
    for fields in ({"no": "reference"}, {"w": b"\xff\0", "o": b"9" * 5000}, {"w": where, "o": "x"}):
        client.xadd(stream_key(own.id), fields)  # type: ignore[arg-type]
    assert sweep.find_missing(own.root, own.id, client, ["L0"], 0.0) == [Location(where)]


def test_a_reference_in_a_workers_hands_is_not_missing(own: Spool, client: redis.Redis) -> None:
    where, stream = keep(own), stream_key(own.id)
    append_references(client, [Reference("spool", own.id, where)])
    client.xgroup_create(stream, "persist", id="0")
    client.xreadgroup("persist", "w", {stream: ">"})
    assert sweep.find_missing(own.root, own.id, client, ["L0"], 0.0) == []


def test_what_is_persisted_while_the_sweep_looks_is_not_missing(
    own: Spool, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, on_stream = keep(own), sweep.read_stream_locations

    def persist_meanwhile(*arguments: Any) -> Iterator[tuple[bytes, bytes]]:
        # As the worker does: first the file goes, then the reference.
        (own.root / where).unlink()
        return on_stream(*arguments)

    monkeypatch.setattr(sweep, "read_stream_locations", persist_meanwhile)
    assert sweep.find_missing(own.root, own.id, client, ["L0"], 0.0) == []


# --- partial files


def test_partial_files_of_the_living_stay_and_those_of_the_dead_go(settings: Config, own: Spool) -> None:
    living = own.begin()
    dead = claim(settings)
    left = dead.begin()
    promised = keep(dead)
    os.close(left.fd)
    dead.close()
    assert inventory.clear_dead_slots(own.root) == 1
    assert os.listdir(own.slot.path / "partial") == [living.name]
    assert os.listdir(dead.slot.path / "partial") == []
    assert (own.root / promised).exists()
    own.discard(living)


def test_unowned_slots_are_those_without_a_living_process(settings: Config, own: Spool) -> None:
    other = claim(settings)
    assert inventory.list_unowned_slots(own.root) == []
    other.close()
    assert inventory.list_unowned_slots(own.root) == ["L1"]
    again = claim(settings)
    assert again.slot.name == "L1"  # looking at it has not taken it
    again.close()


# --- what workers elsewhere have persisted


def test_persisted_files_are_removed(
    settings: Config, own: Spool, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 3)
    places = [keep(own) for _ in range(10)]
    with contextlib.closing(hold(settings, own.id, places[:6])) as ledger:
        # Duplicates, of which nothing is kept, have no rows.
        ledger.spool_references.record_duplicates([f"{own.id}:{where}" for where in places[6:8]], 1)
        client.rpush(persisted_key(own.id), *places[:8])
        assert sweep.release_persisted(own.root, own.id, client, ledger.spool_references) == 8
        assert inventory.list_waiting(own.root, "L0") == [Location(where) for where in places[8:]]
        assert client.llen(persisted_key(own.id)) == 0
        # What is gone needs no proof any more.
        assert ledger.spool_references.find_removable([f"{own.id}:{places[6]}"]) == set()


def test_promised_files_that_the_ledger_does_not_hold_stay_whatever_redis_says(
    settings: Config, own: Spool, client: redis.Redis
) -> None:
    places = [keep(own) for _ in range(4)]
    with contextlib.closing(hold(settings, own.id, places[:1])) as ledger:
        client.rpush(persisted_key(own.id), *places, *places)
        assert sweep.release_persisted(own.root, own.id, client, ledger.spool_references) == 1
    assert inventory.list_waiting(own.root, "L0") == [Location(where) for where in places[1:]]
    assert client.llen(persisted_key(own.id)) == 0


def test_files_stay_while_the_ledger_is_away(settings: Config, own: Spool, client: redis.Redis) -> None:
    where = keep(own)
    client.rpush(persisted_key(own.id), where)
    with contextlib.closing(Ledger(settings.ledger_url)) as ledger, pytest.raises(LedgerError):
        sweep.release_persisted(own.root, own.id, client, ledger.spool_references)
    assert inventory.list_waiting(own.root, "L0") == [Location(where)]
    assert client.llen(persisted_key(own.id)) == 1


def test_nothing_but_ready_files_can_be_removed_through_the_queue(
    settings: Config, own: Spool, client: redis.Redis, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    partial = own.begin()
    places: list[str | bytes] = [
        "id",
        "L0/lock",
        f"L0/partial/{partial.name}",
        "L0/ready/../lock",
        "L0/ready/../../../outside",
        str(outside),
        "L0/ready/",
        "",
        b"L0/ready/\xff\xfe.dcm",
        b"L0/ready/\0.dcm",
    ]
    client.rpush(persisted_key(own.id), *places)
    with contextlib.closing(hold(settings, own.id, map(str, places))) as ledger:
        assert sweep.release_persisted(own.root, own.id, client, ledger.spool_references) == 0
    assert outside.read_text() == "kept"
    assert (own.root / "id").exists()
    assert (own.slot.path / "lock").exists()
    assert os.listdir(own.slot.path / "partial") == [partial.name]
    assert client.llen(persisted_key(own.id)) == 0
    own.discard(partial)


def test_two_listeners_that_read_the_same_page_lose_none_of_the_next(
    settings: Config, own: Spool, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 4)
    places = [keep(own) for _ in range(12)]
    client.rpush(persisted_key(own.id), *places)
    ledger = hold(settings, own.id, places)

    class Slow:
        """The other listener reads and removes everything between our look and what we do about it."""

        def lrange(self, *arguments: Any) -> Any:
            page = client.lrange(*arguments)
            if len(page) == 4 and client.llen(persisted_key(own.id)) == 12:
                sweep.release_persisted(own.root, own.id, client, ledger.spool_references)
                # And what it saw is pushed by a worker after that.
                others = [keep(own) for _ in range(4)]
                hold(settings, own.id, others).close()
                client.rpush(persisted_key(own.id), *others)
            return page

        def pipeline(self, **options: Any) -> Any:
            return client.pipeline(**options)

    assert sweep.release_persisted(own.root, own.id, Slow(), ledger.spool_references) == 4  # type: ignore[arg-type]
    ledger.close()
    assert inventory.list_waiting(own.root, "L0") == []


# --- the command


def test_a_sweep_puts_back_what_is_missing_and_removes_what_the_ledger_holds(
    settings: Config, own: Spool, client: redis.Redis
) -> None:
    kept, forgotten = keep(own), keep(own)
    with_ledger = Ledger(settings.ledger_url)
    with_ledger.migrate()
    with_ledger.instances.record([row(1, spool_ref=f"{own.id}:{kept}")])
    done = sweep.sweep_spool(settings)
    assert (done.waiting, done.published, done.released) == (1, 1, 1)
    assert inventory.list_waiting(own.root, "L0") == [Location(forgotten)]
    assert references(client, own) == [Reference("spool", own.id, forgotten)]
    again = sweep.sweep_spool(settings)
    assert (again.waiting, again.published, again.released) == (1, 0, 0)
    with_ledger.close()


def test_a_sweep_leaves_what_is_being_received_alone(settings: Config, own: Spool) -> None:
    entry = own.begin()
    with contextlib.closing(Ledger(settings.ledger_url)) as ledger:
        ledger.migrate()
    assert sweep.sweep_spool(settings).partials_removed == 0
    assert os.listdir(own.slot.path / "partial") == [entry.name]
    own.discard(entry)


def test_a_sweep_without_a_ledger_removes_nothing_and_says_so(settings: Config, own: Spool) -> None:
    where = keep(own)
    with pytest.raises(IngestError, match="ledger"):
        sweep.sweep_spool(settings)
    assert (own.root / where).exists()
    assert not (settings.data_dir / "ledger.db").exists(), "made by whoever sweeps, it might be root's"


def test_a_sweep_of_a_spool_that_nobody_made_does_nothing(settings: Config) -> None:
    assert sweep.sweep_spool(settings) == sweep.SweepResult()
    assert not settings.spool_dir.exists()


def test_a_sweep_without_a_queue_is_one_error_of_ours(tmp_path: Path) -> None:
    settings = config(tmp_path, f"unix://{tmp_path}/nothing")
    held = claim(settings)
    keep(held)
    with pytest.raises(IngestError, match="queue cannot be reached"):
        sweep.sweep_spool(settings)
    held.close()


def test_the_command_says_what_it_did(settings: Config, own: Spool, tmp_path: Path) -> None:
    keep(own)
    with contextlib.closing(Ledger(settings.ledger_url)) as ledger:
        ledger.migrate()
    path = tmp_path / "ingest.toml"
    path.write_text(f'[node]\ndata_dir = "."\n[queue]\nurl = "{settings.queue.url}"\n')
    result = CliRunner().invoke(main, ["sweep", "-c", str(path)])
    assert result.exit_code == 0, result.output
    assert "1 waiting in the spool, 1 of them put back" in " ".join(result.output.split())
