"""The hand-off: what was promised gets to the queue, and nothing holds it up."""

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from ingest.alarms import standing_alarms
from ingest.queue.client import connect
from ingest.queue.keys import DATA_CHUNK_BYTES, SPOOLS_KEY, data_key, persisted_key, stream_key
from ingest.spool import inventory
from ingest.spool.reference import Location, Reference
from ingest.supervisor.embedded_queue import EmbeddedQueue
from tests.support.handing import carried, handing_off, places, references, settings_of
from tests.support.ledgers import hold
from tests.support.nodes import eventually
from tests.support.servers import Valkey, wait_for_pong
from tests.support.spools import config, keep

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
    data = os.urandom(3 * DATA_CHUNK_BYTES + 17)
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
    settings = settings_of(tmp_path, redis_server, "redis")
    with handing_off(settings) as (spool, hand):
        where, promised = keep(spool), keep(spool)
        hold(settings, spool.id, []).close()
        hand.put(where)
        [(number, _), *_] = eventually(lambda: client.xrange(stream_key(spool.id)), 10)
        # Somebody else may say of anything that it is persisted.
        client.rpush(persisted_key(spool.id), where, promised)
        eventually(lambda: client.llen(persisted_key(spool.id)) == 0, 15, "the list is worked off")
        assert (spool.root / where).exists()
        assert (spool.root / promised).exists()
        hold(settings, spool.id, [where]).close()
        with client.pipeline() as pipeline:  # as the worker does
            pipeline.rpush(persisted_key(spool.id), where)
            pipeline.xdel(stream_key(spool.id), number)
            pipeline.delete(data_key(spool.id, where))
            pipeline.execute()
        eventually(lambda: not (spool.root / where).exists(), 10)
        assert (spool.root / promised).exists()


def test_a_ledger_that_the_listener_cannot_ask_is_an_alarm_until_it_can(
    tmp_path: Path, redis_server: Valkey, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.queue.publisher.PROOF_SECONDS", 0.2)
    monkeypatch.setattr("ingest.queue.publisher.PROOF_ALARM_SECONDS", 0.5)
    settings = settings_of(tmp_path, redis_server, "redis")
    with handing_off(settings) as (spool, _):
        where = keep(spool)
        client.rpush(persisted_key(spool.id), where)
        [alarm] = eventually(lambda: standing_alarms(settings.run_dir), 15, "the alarm")
        assert alarm.name == "spool_not_let_go"
        assert (spool.root / where).exists()
        hold(settings, spool.id, [where]).close()
        eventually(lambda: not (spool.root / where).exists(), 15, "it is let go")
        eventually(lambda: not standing_alarms(settings.run_dir), 15, "the alarm is over")


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
        eventually(lambda: hand.spool_used_bytes == 1500, 10)
        hand.close(10)


def test_many_are_published_in_their_order(
    carrier: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    settings = settings_of(tmp_path, redis_server, carrier, carrier_max_waiting=10_000)
    with handing_off(settings, start=False) as (spool, hand):
        # The thread starts afterwards. Its sweep would publish entries that were kept long before their put.
        kept = [keep(spool) for _ in range(3000)]
        hand.put_many(kept)
        hand.put_many([])
        hand.start()
        eventually(lambda: client.xlen(stream_key(spool.id)) >= 3000, 20)
        assert hand.close(10)
        assert places(client, spool) == kept


def test_places_within_a_file_keep_their_offset_and_length(
    carrier: str, tmp_path: Path, redis_server: Valkey, client: redis.Redis
) -> None:
    with handing_off(settings_of(tmp_path, redis_server, carrier)) as (spool, hand):
        where = keep(spool, data := os.urandom(3 * DATA_CHUNK_BYTES))
        parts = [
            Location(where, 0, 700),
            Location(where, 1024, DATA_CHUNK_BYTES + 5),
            Location(where, 2 * DATA_CHUNK_BYTES, 99),
        ]
        hand.put_many(parts)
        eventually(lambda: client.xlen(stream_key(spool.id)) >= 3, 10)
        entries = [fields for _, fields in client.xrange(stream_key(spool.id), count=3)]
        assert [(one[b"w"].decode(), int(one[b"o"]), int(one[b"l"])) for one in entries] == parts
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
    settings = settings_of(tmp_path, redis_server, "redis")
    with handing_off(settings) as (spool, hand):
        hold(settings, spool.id, []).close()
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

    def broken(*_: Any, **__: Any) -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("a defect")
        return 0

    monkeypatch.setattr(inventory, "clear_dead_slots", broken)
    with handing_off(settings_of(tmp_path, redis_server)) as (spool, hand):
        eventually(lambda: len(calls) >= 3, 10)
        hand.put(keep(spool))
        eventually(lambda: places(client, spool), 10)


def test_the_embedded_servers_socket_is_used_where_no_url_is_given(tmp_path: Path) -> None:
    settings = config(tmp_path)
    queue = EmbeddedQueue(settings.data_dir)
    queue.start()
    try:
        with closing(connect(settings)) as made:
            assert wait_for_pong(queue, 10)
            assert made.ping()
    finally:
        queue.stop()
