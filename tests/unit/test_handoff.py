"""The hand-off: everything that was promised gets to the queue, whatever Redis does meanwhile."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from ingest import handoff
from ingest.config.model import Config
from ingest.handoff import Handoff
from ingest.queue import CHUNK, SPOOLS_KEY, connect, data_key, persisted_key, stream_key
from ingest.spool.reference import Place, Reference
from ingest.spool.spool import Spool
from tests.nodes import eventually
from tests.servers import Valkey
from tests.spools import claim, config, keep


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is looked for within tenths of seconds."""
    monkeypatch.setattr(handoff, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(handoff, "SWEEP_AGE_SECONDS", 0.2)
    monkeypatch.setattr(handoff, "SWEEP_SHARE", 1)


@pytest.fixture(params=["spool", "redis"])
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(redis_server: Valkey) -> Iterator[redis.Redis]:
    with closing(redis_server.client()) as made:
        yield made


@contextmanager
def handing_off(settings: Config, *, start: bool = True) -> Iterator[tuple[Spool, Handoff]]:
    spool = claim(settings)
    made = Handoff(settings, spool)
    if start:
        made.start()
    try:
        yield spool, made
    finally:
        if start:
            made.close(10)
        spool.close()


def settings_of(tmp_path: Path, server: Valkey, carrier: str = "spool", **queue: int) -> Config:
    return config(tmp_path, server.url, queue={"carrier": carrier, **queue})


def references(client: redis.Redis, spool: Spool) -> list[Reference]:
    return [Reference.from_fields(fields) for _, fields in client.xrange(stream_key(spool.id))]


def places(client: redis.Redis, spool: Spool) -> list[str]:
    return [reference.where for reference in references(client, spool)]


def carried(client: redis.Redis, spool: Spool, where: str) -> bytes:
    return b"".join(client.lrange(data_key(spool.id, where), 0, -1))


# --- the usual


def test_references_come_on_the_stream_of_the_spool_in_order(
    carrier: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server, carrier)) as (spool, hand):
        kept = [keep(spool) for _ in range(20)]
        for where in kept:
            hand.put(where)
        eventually(lambda: len(places(client, spool)) >= 20, 10)
        assert places(client, spool) == kept
        assert {(one.carrier, one.spool) for one in references(client, spool)} == {(carrier, spool.id)}
        eventually(lambda: client.sismember(SPOOLS_KEY, spool.id), 5, "workers elsewhere can find the stream")


def test_a_batch_takes_one_round_trip(tmp_path: Path, redis_server: Valkey, client: redis.Redis) -> None:
    with handing_off(settings_of(tmp_path, redis_server), start=False) as (spool, hand):
        kept = [keep(spool) for _ in range(100)]
        for where in kept:
            hand.put(where)
        calls_before = client.info("stats")["total_reads_processed"]
        hand.start()
        eventually(lambda: len(places(client, spool)) == 100, 10)
        assert client.info("stats")["total_reads_processed"] - calls_before < 50
        hand.close(10)


def test_a_data_set_rides_on_the_queue_in_chunks_and_its_length_in_the_reference(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    data = os.urandom(3 * CHUNK + 17)
    with handing_off(settings_of(tmp_path, redis_server, "redis")) as (spool, hand):
        where = keep(spool, data)
        hand.put(where)
        [reference] = eventually(lambda: references(client, spool), 10)
        assert reference == Reference("redis", spool.id, where, length=len(data))
        assert client.llen(data_key(spool.id, where)) == 4
        assert carried(client, spool, where) == data
        assert client.ttl(data_key(spool.id, where)) == -1, "it must not end by itself"
        assert (spool.root / where).exists(), "the spool lets go of it once it is persisted"


def test_the_spool_lets_go_of_what_a_worker_elsewhere_has_persisted(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server, "redis")) as (spool, hand):
        where = keep(spool)
        hand.put(where)
        [(number, _)] = eventually(lambda: client.xrange(stream_key(spool.id)), 10)
        with client.pipeline() as pipeline:  # as the worker does
            pipeline.rpush(persisted_key(spool.id), where)
            pipeline.xdel(stream_key(spool.id), number)
            pipeline.delete(data_key(spool.id, where))
            pipeline.execute()
        eventually(lambda: not (spool.root / where).exists(), 10)
        assert references(client, spool) == []


def test_put_never_waits_and_close_hands_off_what_waits(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server), start=False) as (spool, hand):
        kept = [keep(spool) for _ in range(1000)]
        hand.start()
        for where in kept:
            hand.put(where)
        hand.close(10)
        assert places(client, spool) == kept


def test_bytes_in_the_spool_are_counted_where_they_are_limited(tmp_path: Path, redis_server: Valkey) -> None:
    settings = config(tmp_path, redis_server.url, receive={"spool_max_bytes": 10**9})
    with handing_off(settings, start=False) as (spool, hand):
        keep(spool, b"x" * 1000)
        keep(spool, b"x" * 500)
        hand.start()
        eventually(lambda: hand.used == 1500, 10)
        hand.close(10)


def test_many_are_put_at_once_as_places_or_as_strings(
    carrier: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    settings = settings_of(tmp_path, redis_server, carrier, carrier_max_waiting=10_000)
    with handing_off(settings) as (spool, hand):
        kept = [keep(spool) for _ in range(3000)]
        hand.put_many(kept[:1500])
        hand.put_many(Place(where) for where in kept[1500:])
        hand.put_many([])
        eventually(lambda: client.xlen(stream_key(spool.id)) >= 3000, 20)
        assert places(client, spool) == kept


def test_places_within_a_file_keep_their_offset_and_length(
    carrier: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server, carrier)) as (spool, hand):
        where = keep(spool, data := os.urandom(3 * CHUNK))
        parts = [Place(where, 0, 700), Place(where, 1024, CHUNK + 5), Place(where, 2 * CHUNK, 99)]
        hand.put_many(parts)
        eventually(lambda: len(references(client, spool)) >= 3, 10)
        assert [one.place for one in references(client, spool)[:3]] == parts
        if carrier == "redis":
            for part in parts:
                assert carried(client, spool, part.name) == data[part.offset : part.offset + part.length]


def test_under_load_many_references_take_few_round_trips(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server)) as (spool, hand):
        kept = [f"L0/ready/{number:x}.dcm" for number in range(2000)]
        before = client.info("stats")["total_reads_processed"]
        for start in range(0, 2000, 10):
            hand.put_many(kept[start : start + 10])
            time.sleep(0.001)
        eventually(lambda: client.xlen(stream_key(spool.id)) == 2000, 10)
        assert client.info("stats")["total_reads_processed"] - before < 150
        assert places(client, spool) == kept


@pytest.mark.parametrize("loss", ["forgotten", "killed"])
def test_a_redis_that_has_forgotten_the_script_is_told_again(
    loss: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis, capfd: pytest.CaptureFixture[str]
) -> None:
    with handing_off(settings_of(tmp_path, redis_server)) as (spool, hand):
        hand.put(first := keep(spool))
        eventually(lambda: places(client, spool) == [first], 10)
        if loss == "forgotten":
            client.script_flush()
        else:
            redis_server.kill()
            redis_server.start()
        hand.put(second := keep(spool))
        eventually(lambda: second in places(client, spool), 10)
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] > 0
    assert "queue_runs_no_scripts" not in "".join(capfd.readouterr())


def test_a_redis_that_allows_no_scripts_gets_references_one_by_one_and_that_is_said_once(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis, capfd: pytest.CaptureFixture[str]
) -> None:
    client.execute_command("ACL", "SETUSER", "poor", "on", ">word", "~*", "&*", "+@all", "-@scripting")
    url = redis_server.url.replace("unix://", "unix://poor:word@")
    with handing_off(config(tmp_path, url)) as (spool, hand):
        kept = [keep(spool) for _ in range(10)]
        for start in (0, 5):
            hand.put_many(kept[start : start + 5])
            eventually(lambda start=start: places(client, spool) == kept[: start + 5], 10)
    client.execute_command("ACL", "DELUSER", "poor")
    assert "".join(capfd.readouterr()).count("queue_runs_no_scripts") == 1


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
    room = client.info("memory")["used_memory"] + 4 * CHUNK if carrier == "redis" else CHUNK
    client.config_set("maxmemory", room)
    client.config_set("maxmemory-policy", "noeviction")
    try:
        with handing_off(settings_of(tmp_path, redis_server, carrier)) as (spool, hand):
            where = keep(spool, b"DOE^JANE " * (4 * CHUNK))
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
    monkeypatch.setattr(handoff, "WAITING_MAX", 3)
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
        where = keep(spool, data := os.urandom(5 * CHUNK))
        stop, seen = threading.Event(), set()

        def carry(hand: Handoff) -> None:
            while not stop.is_set():
                hand._carry(Place(where))

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


# --- what must not hold up the others


def test_a_file_that_was_persisted_before_it_was_carried_is_passed_over(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server, "redis")) as (spool, hand):
        gone, there = keep(spool), keep(spool)
        (spool.root / gone).unlink()
        hand.put(gone)
        hand.put(there)
        eventually(lambda: places(client, spool) == [there], 10)


@pytest.mark.parametrize("fault", ["empty", "unreadable"])
def test_a_file_that_cannot_be_carried_does_not_hold_up_the_others(
    fault: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server, "redis")) as (spool, hand):
        bad, good = keep(spool), keep(spool)
        (spool.root / bad).unlink()
        if fault == "empty":
            (spool.root / bad).touch()
        else:
            (spool.root / bad).mkdir()
        hand.put(bad)
        hand.put(good)
        eventually(lambda: places(client, spool) == [good], 10)


def test_junk_in_redis_does_not_end_the_hand_off(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server, "redis")) as (spool, hand):
        client.rpush(persisted_key(spool.id), b"\xff\0junk", "../../id")
        client.xadd(stream_key(spool.id), {"no": "reference"})
        eventually(lambda: client.llen(persisted_key(spool.id)) == 0, 10)
        where = keep(spool)
        hand.put(where)
        eventually(lambda: client.exists(data_key(spool.id, where)), 10)


def test_a_defect_is_said_and_does_not_end_the_hand_off(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def broken(*_: Any) -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("a defect")
        return 0

    monkeypatch.setattr(handoff.sweep, "clear_orphans", broken)
    with handing_off(settings_of(tmp_path, redis_server)) as (spool, hand):
        eventually(lambda: len(calls) >= 3, 10)
        hand.put(keep(spool))
        eventually(lambda: places(client, spool), 10)


def test_the_embedded_servers_socket_is_used_where_no_url_is_given(tmp_path: Path) -> None:
    with closing(connect(config(tmp_path))) as made:
        assert made.connection_pool.connection_kwargs["path"].endswith("/valkey.sock")
