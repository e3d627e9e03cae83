"""Clocks that are set back or forward: no wait lasts longer than its own maximum, and nothing grows older."""

import contextlib
import time
from pathlib import Path

import pytest

from ingest import clock as clocks
from ingest.clock import WallClockSteps, unix_ms
from ingest.ledger import Circuit, CircuitState, Ledger
from ingest.queue.consumer import StreamConsumer
from ingest.queue.keys import GROUP, stream_key
from ingest.queue.wakeups import drain_key, hold_key
from ingest.workers.forward import circuit
from ingest.workers.forward.destination_slots import slot_key
from tests.support.clocks import require_clock
from tests.support.forwarding import Forwarding
from tests.support.ledgers import row
from tests.support.nodes import eventually
from tests.support.peers import CT, PynetdicomRemote
from tests.support.persisting import Site
from tests.support.servers import Valkey, valkey

DAY_MS = 86_400_000
CONTEXTS = [(CT, ["1.2.840.10008.1.2.1"])]


def times(ledger: Ledger, state: str) -> list[int]:
    with ledger.database.begin_read() as connection:
        query = f"SELECT next_at FROM deliveries WHERE state = '{state}' ORDER BY next_at"
        return list(connection.exec_driver_sql(query).scalars())


def test_leases_and_pauses_of_a_clock_that_was_ahead_end_within_their_maximum(ledger: Ledger) -> None:
    ledger.instances.record([row(number) for number in range(3)])
    now = ledger.unix_ms()
    ahead = now + DAY_MS
    leased = ledger.deliveries.lease_due("pacs", "gone", 10, ahead, 10_000)
    assert len(leased) == 3
    with ledger.database.begin_write() as connection:
        connection.exec_driver_sql(
            f"UPDATE deliveries SET state = 'retry', lease_owner = NULL, next_at = {ahead + 1} "
            f"WHERE id = {leased[0].id}"
        )
    assert ledger.deliveries.lease_due("pacs", "us", 10, now, 10_000) == []

    assert ledger.deliveries.shorten_waits("pacs", now, 10_000, 60_000) == 3

    assert times(ledger, "sending") == [now + 10_000] * 2
    assert times(ledger, "retry") == [now + 60_000]
    assert ledger.deliveries.shorten_waits("pacs", now, 10_000, 60_000) == 0
    assert len(ledger.deliveries.lease_due("pacs", "us", 10, now + 10_000, 10_000)) == 2


def test_living_owner_keeps_a_lease_that_was_shortened(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    now = ledger.unix_ms()
    [mine] = ledger.deliveries.lease_due("pacs", "us", 10, now + DAY_MS, 10_000)
    ledger.deliveries.shorten_waits("pacs", now, 10_000, 60_000)
    assert ledger.deliveries.renew_leases([mine.id], "us", now + 3_000, 10_000) == {mine.id}
    assert ledger.deliveries.lease_due("pacs", "other", 10, now + 10_000, 10_000) == []


def test_leases_go_by_the_clock_of_the_database_where_several_hosts_share_it(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Ledger(postgresql_url)) as opened:
        true = unix_ms()
        monkeypatch.setattr(time, "time_ns", lambda: (true + DAY_MS) * 1_000_000)
        assert abs(opened.unix_ms() - true) < 5_000


def test_circuit_of_a_clock_that_was_ahead_is_probed_at_once() -> None:
    now = 1_000_000
    opened = Circuit(destination="pacs", state=CircuitState.OPEN, failures=3, probe_at=now + DAY_MS)
    assert (
        circuit.find_permitted_action(circuit.bound_wait(opened, now, 300_000), now)
        is circuit.PermittedAction.PROBE
    )
    waiting = Circuit(destination="pacs", state=CircuitState.OPEN, failures=3, probe_at=now + 300_000)
    assert circuit.bound_wait(waiting, now, 300_000) is waiting


def test_delivery_grows_no_older_by_a_clock_that_is_set_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real = WallClockSteps(), clocks._read_offset_ms()
    monkeypatch.setattr(clocks, "_read_offset_ms", lambda: real + DAY_MS)
    assert abs(clock.forward_ms() - DAY_MS) < 1000
    monkeypatch.setattr(clocks, "_read_offset_ms", lambda: real - DAY_MS)
    assert clock.forward_ms() == 0


def test_worker_goes_on_within_seconds_after_the_clock_was_set_back(
    tmp_path: Path, redis_server: Valkey
) -> None:
    """What ledger and Redis hold then: times that lie a day ahead."""
    forwarding = Forwarding(tmp_path / "node", redis_server)
    with (
        contextlib.closing(forwarding.ledger),
        PynetdicomRemote(CONTEXTS, None) as remote,
        contextlib.closing(redis_server.client()) as client,
    ):
        forwarding.add(remote.port, retry_max_seconds=2.0)
        forwarding.many(6)
        ahead = forwarding.ledger.unix_ms() + DAY_MS
        forwarding.ledger.deliveries.lease_due("pacs", "killed", 3, ahead, 10_000)
        with forwarding.ledger.database.begin_write() as connection:
            connection.exec_driver_sql(
                f"UPDATE deliveries SET state = 'retry', next_at = {ahead} WHERE state = 'waiting'"
            )
        forwarding.ledger.circuits.change_circuit(
            "pacs",
            lambda _: Circuit(destination="pacs", state=CircuitState.OPEN, failures=3, probe_at=ahead),
        )
        client.set(hold_key("pacs"), "killed", px=DAY_MS)
        client.set(slot_key("pacs", 0), "killed", px=DAY_MS)
        client.set(drain_key("pacs"), "taken", px=DAY_MS)
        with forwarding.worker():
            forwarding.wait({"delivered": 6}, 25)


def test_entries_of_a_dead_worker_are_taken_over_although_the_clock_of_redis_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = require_clock(tmp_path)
    clock.preload(monkeypatch)
    with valkey() as server, contextlib.closing(server.client()) as client:
        clock.step(3600)
        stream = stream_key("s")
        number = client.xadd(stream, {"c": "spool", "s": "s", "w": "L0/ready/1.dcm", "o": "0", "l": "0"})
        client.xgroup_create(stream, GROUP, "0")
        client.xreadgroup(GROUP, "dead", {stream: ">"})
        clock.step(0)
        consumer = StreamConsumer(client, "living", lambda: [stream])
        assert consumer.claim_abandoned(10) == []
        found = eventually(lambda: consumer.claim_abandoned(10), 5, "it is taken over after some looks")
        assert [entry.id for entry in found] == [number.decode()]


def test_entries_in_the_hands_of_a_living_worker_are_left_to_it(site: Site) -> None:
    site.client.xadd(site.stream, {"c": "spool", "s": site.spool, "w": "L0/ready/1.dcm", "o": "0", "l": "0"})
    site.client.xgroup_create(site.stream, "persist", "0")
    site.client.xreadgroup("persist", "busy", {site.stream: ">"})
    consumer = StreamConsumer(site.client, "idle", lambda: [site.stream])
    for _ in range(6):
        time.sleep(0.01)
        assert consumer.claim_abandoned(10) == []
