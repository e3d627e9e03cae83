"""Hours of destinations and deliveries: nothing begins outside of them, whatever happens meanwhile."""

import contextlib
import time
from pathlib import Path

import pytest

from ingest.config.hours import format_hours
from ingest.config.model import TLS, BandwidthSettings
from ingest.dicom.priority import Priority
from ingest.ledger import DeliveryState, DeliveryTerms
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.operations.deliveries import (
    list_deliveries,
    pause_destination,
    release_deliveries,
    resume_destination,
)
from ingest.status.report import gather_status
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import CT, PynetdicomRemote, Stored
from tests.support.zones import ZONE, wall_clock

CONTEXTS = [(CT, [EXPLICIT])]
NIGHT = "22:00-06:00"
ROUTE_NIGHT = format_hours(NIGHT, ZONE)


def record(
    forwarding: Forwarding, series: str, count: int, to: str, **terms: DeliveryState | Priority | str
) -> set[str]:
    made = [Made(sop=f"1.2.{series}.{number}", series=f"1.2.{series}") for number in range(1, count + 1)]
    forwarding.record(*made, to=(to,), terms={to: DeliveryTerms(**terms)})  # type: ignore[arg-type]
    return {one.sop for one in made}


def test_night_begins_once_for_all_although_worker_and_redis_are_lost_before(
    forwarding: Forwarding, tls: TLS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: dict[str, float] = {}

    def answer(one: Stored) -> int:
        times[one.sop_instance] = time.time()
        return 0

    with (
        wall_clock(tmp_path / "zones", monkeypatch, 22, 9) as opening,
        PynetdicomRemote(CONTEXTS, tls, answer=answer) as scp,
    ):
        forwarding.add(scp.port, "night", hours=NIGHT, time_zone=ZONE)
        forwarding.add(scp.port, "any")
        forwarding.add(scp.port, "paused", hours=NIGHT, time_zone=ZONE)
        record(forwarding, "3", 10, "night")
        urgent = record(forwarding, "4", 3, "night", priority=Priority.URGENT)
        held = record(forwarding, "5", 2, "night", state=DeliveryState.HELD)
        record(forwarding, "6", 5, "any", hours=ROUTE_NIGHT)
        at_once = record(forwarding, "7", 5, "any")
        record(forwarding, "8", 2, "paused")
        pause_destination(forwarding.config, "paused", "ann")
        with forwarding.worker() as worker:
            forwarding.wait({"delivered": 5, "waiting": 5}, 8, "any")
            worker.kill()
        with contextlib.closing(forwarding.server.client()) as client:
            client.flushall()
        with forwarding.worker():
            forwarding.wake("night")
            # A person's release does not send by day.
            release_deliveries(forwarding.config, DeliveryFilter(states=(DeliveryState.HELD,)), dry_run=False)
            assert forwarding.states("night") == {"waiting": 15}
            assert time.time() < opening, "the machine is too slow for this test"

            listed = list_deliveries(forwarding.config, DeliveryFilter(destination="night"), 1, None)[0]
            assert listed.waits_for == "the hours of its destination"
            assert abs(listed.next_attempt_ms - opening * 1000) <= 1
            listed = list_deliveries(
                forwarding.config, DeliveryFilter(destination="any", states=(DeliveryState.WAITING,)), 1, None
            )[0]
            assert listed.waits_for == f"the hours of its route: {ROUTE_NIGHT}"
            assert abs(listed.next_attempt_ms - opening * 1000) <= 1
            rows = {row["name"]: row for row in gather_status(forwarding.config)["ledger"]["destinations"]}
            assert rows["night"]["opens_at_ms"] == opening * 1000
            assert rows["any"]["opens_at_ms"] == 0
            assert abs(rows["any"]["next_attempt_at_ms"] - opening * 1000) <= 1

            forwarding.wait({"delivered": 15}, 30, "night")
            forwarding.wait({"delivered": 10}, 30, "any")
            assert forwarding.states("paused") == {"waiting": 2}
            assert len(scp.stored) == 25
            resume_destination(forwarding.config, "paused")
            forwarding.wait({"delivered": 2}, 30, "paused")
    assert {sop for sop, at in times.items() if at < opening} == at_once
    order = [
        one.sop_instance for one in scp.stored if one.sop_instance.startswith(("1.2.3", "1.2.4", "1.2.5"))
    ]
    assert urgent <= set(order[:4])  # one in eight places is for what has waited longest
    assert held <= set(order)


@pytest.mark.parametrize("of", ["destination", "route"])
def test_morning_ends_a_running_drain_and_gives_the_rest_back(
    forwarding: Forwarding, tls: TLS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    times: list[float] = []

    def answer(_: Stored) -> int:
        times.append(time.time())
        time.sleep(0.05)
        return 0

    with (
        wall_clock(tmp_path / "zones", monkeypatch, 6, 6) as closing,
        PynetdicomRemote(CONTEXTS, tls, answer=answer) as scp,
    ):
        if of == "destination":
            forwarding.add(scp.port, hours=NIGHT, time_zone=ZONE)
            record(forwarding, "3", 300, "pacs")
        else:
            forwarding.add(scp.port)
            record(forwarding, "3", 300, "pacs", hours=ROUTE_NIGHT)
        with forwarding.worker():
            eventually(lambda: time.time() > closing and "sending" not in forwarding.states(), 15, "the end")
            count = len(times)
            assert 0 < count < 300
            forwarding.wake()
            time.sleep(2)  # what would be sent
            assert forwarding.states() == {"delivered": count, "waiting": 300 - count}
        assert len(times) == count
        assert max(times) < closing + 0.3
        listed = list_deliveries(forwarding.config, DeliveryFilter(states=(DeliveryState.WAITING,)), 1, None)[
            0
        ]
        assert listed.next_attempt_ms // 1000 in {round(closing + 16 * 3600) - 1, round(closing + 16 * 3600)}


def test_bandwidth_of_the_night_counts_for_a_transfer_that_is_under_way(
    forwarding: Forwarding, tls: TLS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        wall_clock(tmp_path / "zones", monkeypatch, 22, 6) as opening,
        PynetdicomRemote(CONTEXTS, tls) as scp,
    ):
        forwarding.add(
            scp.port,
            time_zone=ZONE,
            bandwidth_mb_per_s=0.2,
            bandwidth_by_hours=(BandwidthSettings(hours=NIGHT, mb_per_s=0),),
        )
        forwarding.record(
            Made(sop="1.2.3.1", pixels=bytes(6_000_000))
        )  # half a minute at the rate of the day
        with forwarding.worker():
            forwarding.wait({"delivered": 1}, 25)
            assert opening < time.time() < opening + 15
