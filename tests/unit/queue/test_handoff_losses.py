"""The hand-off with a Redis that is away, full or forgetful, and beside dead and living listeners."""

import os
import threading
import time
from pathlib import Path

import pytest
import redis

from ingest.queue import publisher
from ingest.queue.epoch import QueueEpoch
from ingest.queue.keys import DATA_CHUNK_BYTES, SPOOLS_KEY, data_key, persisted_key, stream_key
from ingest.queue.publisher import Publisher
from ingest.spool.reference import Location
from tests.support.handing import carried, handing_off, places, references, settings_of
from tests.support.ledgers import hold
from tests.support.nodes import eventually
from tests.support.servers import Valkey
from tests.support.spools import claim, keep

# --- Redis away and back


def test_what_is_put_while_redis_is_away_follows_once_it_is_back(
    carrier: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    redis_server.kill()
    with handing_off(settings_of(tmp_path, redis_server, carrier)) as (spool, hand):
        kept = [keep(spool) for _ in range(5)]
        begun = time.monotonic()
        for where in kept:
            hand.put(where)
        assert time.monotonic() - begun < 0.5
        redis_server.start()
        eventually(lambda: places(client, spool)[:5] == kept, 10)


@pytest.mark.parametrize("loss", ["flushed", "killed"])
def test_what_redis_has_lost_is_put_back(
    loss: str, carrier: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server, carrier)) as (spool, hand):
        kept = [keep(spool, os.urandom(1000)) for _ in range(5)]
        for where in kept:
            hand.put(where)
        eventually(lambda: places(client, spool) == kept, 10)
        if loss == "flushed":
            client.flushall()
        else:
            redis_server.kill()
            redis_server.start()
        eventually(lambda: set(places(client, spool)) == set(kept), 10, "all are on the stream again")
        eventually(lambda: client.sismember(SPOOLS_KEY, spool.id), 5)
        if carrier == "redis":
            for where in kept:
                assert carried(client, spool, where) == (spool.root / where).read_bytes()


def test_a_redis_without_memory_keeps_nothing_from_being_handed_off_later(
    carrier: str,
    tmp_path: Path,
    redis_server: Valkey,
    client: redis.Redis,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # With the data sets on the queue, room for some chunks and not for all.
    room = (
        client.info("memory")["used_memory"] + 4 * DATA_CHUNK_BYTES
        if carrier == "redis"
        else DATA_CHUNK_BYTES
    )
    client.config_set("maxmemory", room)
    client.config_set("maxmemory-policy", "noeviction")
    try:
        with handing_off(settings_of(tmp_path, redis_server, carrier)) as (spool, hand):
            where = keep(spool, b"DOE^JANE " * (4 * DATA_CHUNK_BYTES))
            hand.put(where)
            eventually(lambda: hand._failures >= 2, 10, "Redis refuses")
            assert places(client, spool) == []
            assert client.keys("ingest:data:*") == [], "what could not be put there whole takes no memory"
            client.config_set("maxmemory", "0")
            eventually(lambda: where in places(client, spool), 10)
    finally:
        client.config_set("maxmemory", "0")
    said = "".join(capfd.readouterr())
    assert "queue_away" in said
    assert "DOE" not in said


def test_more_than_is_remembered_while_redis_is_away_is_found_by_the_sweep(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "WAITING_MAX", 3)
    redis_server.kill()
    with handing_off(settings_of(tmp_path, redis_server)) as (spool, hand):
        kept = [keep(spool) for _ in range(10)]
        for where in kept:
            hand.put(where)
        redis_server.start()
        eventually(lambda: set(places(client, spool)) == set(kept), 10)


def test_close_does_not_wait_for_a_redis_that_is_away(tmp_path: Path, redis_server: Valkey) -> None:
    redis_server.kill()
    with handing_off(settings_of(tmp_path, redis_server)) as (spool, hand):
        where = keep(spool)
        hand.put(where)
        eventually(lambda: hand._failures >= 3, 10)
        begun = time.monotonic()
        hand.close(10)
        assert time.monotonic() - begun < 5
        assert not hand._thread.is_alive()
        assert (spool.root / where).exists()


# --- a full queue


def test_a_full_queue_is_waited_for_and_the_sweep_goes_on_meanwhile(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    settings = settings_of(tmp_path, redis_server, "redis", carrier_max_waiting=2)
    with handing_off(settings) as (spool, hand):
        persisted = keep(spool)
        kept = [keep(spool) for _ in range(5)]
        for where in kept:
            hand.put(where)
        eventually(lambda: places(client, spool) == kept[:2], 10)
        hold(settings, spool.id, [persisted]).close()
        client.rpush(persisted_key(spool.id), persisted)
        eventually(lambda: not (spool.root / persisted).exists(), 10, "the sweep goes on")
        assert places(client, spool) == kept[:2]
        for number in range(5):
            [(entry, _), *_] = eventually(lambda: client.xrange(stream_key(spool.id)), 10)
            (spool.root / kept[number]).unlink()
            client.xdel(stream_key(spool.id), entry)
        eventually(lambda: not hand._waiting, 10)
        assert list((spool.slot.path / "ready").iterdir()) == []


def test_close_with_a_full_queue_leaves_the_rest_in_the_spool(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    settings = settings_of(tmp_path, redis_server, "redis", carrier_max_waiting=1)
    with handing_off(settings) as (spool, hand):
        kept = [keep(spool) for _ in range(3)]
        for where in kept:
            hand.put(where)
        eventually(lambda: places(client, spool) == kept[:1], 10)
        hand.close(10)
        assert not hand._thread.is_alive()
        assert all((spool.root / where).exists() for where in kept)


# --- what others left


def test_what_waits_in_the_slot_of_a_dead_listener_is_handed_off(
    carrier: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    settings = settings_of(tmp_path, redis_server, carrier)
    with handing_off(settings) as (spool, _):
        dead = claim(settings)
        left = [keep(dead) for _ in range(3)]
        dead.close()
        eventually(lambda: set(places(client, spool)) == set(left), 10)


def test_what_waits_in_the_slot_of_a_living_listener_is_its_own_affair(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    settings = settings_of(tmp_path, redis_server)
    with handing_off(settings) as (spool, _):
        living = claim(settings)
        keep(living)
        own = keep(spool)
        eventually(lambda: own in places(client, spool), 10, "the sweep has looked")
        assert places(client, spool) == [own]
        living.close()


def test_two_listeners_that_carry_the_same_file_leave_it_whole(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    settings = settings_of(tmp_path, redis_server, "redis", carrier_max_waiting=10_000)
    with (
        handing_off(settings, start=False) as (spool, first),
        handing_off(settings, start=False) as (_, second),
    ):
        where = keep(spool, data := os.urandom(5 * DATA_CHUNK_BYTES))
        stop, seen = threading.Event(), set()

        def carry(hand: Publisher) -> None:
            while not stop.is_set():
                hand._publish_with_data(Location(where))

        threads = [threading.Thread(target=carry, args=(hand,)) for hand in (first, second)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: client.xlen(stream_key(spool.id)) > 1, 10)
            while client.xlen(stream_key(spool.id)) < 20:
                seen.add(carried(client, spool, where) == data)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert seen == {True}
        assert {one.length for one in references(client, spool)} == {len(data)}
        assert client.keys("ingest:data:*") == [data_key(spool.id, where).encode()]


# --- what tells that Redis has forgotten


def test_a_witness_stands_until_redis_has_forgotten(redis_server: Valkey, client: redis.Redis) -> None:
    stream = stream_key("spool")
    client.xadd(stream, {"w": "1"})
    witness = QueueEpoch(client, "spool")
    assert not witness.is_unchanged(), "nothing is known of it yet"
    assert witness.is_unchanged()
    entry = client.xadd(stream, {"w": "2"})
    client.xdel(stream, entry)
    assert witness.is_unchanged(), "what a worker has done is not forgotten"
    for forget in (client.flushall, lambda: client.delete(stream), lambda: restart(redis_server)):
        client.xadd(stream, {"w": "3"})
        witness.is_unchanged()
        assert witness.is_unchanged()
        forget()
        assert not witness.is_unchanged()


def restart(server: Valkey) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("loss", ["flushed", "deleted"])
def test_a_loss_long_after_the_last_whole_sweep_is_seen_at_once(
    loss: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server)) as (spool, hand):
        kept = [keep(spool) for _ in range(5)]
        for where in kept:
            hand.put(where)
        eventually(lambda: places(client, spool) == kept, 10)
        # By now nothing is looked through any more for a minute.
        eventually(lambda: hand._whole_sweep_at - time.monotonic() > 30, 10, "the next whole sweep is far")
        if loss == "flushed":
            client.flushall()
        else:
            client.delete(stream_key(spool.id))
        eventually(lambda: set(places(client, spool)) == set(kept), 10, "all are on the stream again")
