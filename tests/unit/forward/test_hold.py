"""Held deliveries: nothing sends them before a person releases them, and nothing forgets them."""

import contextlib

import pytest
from click.testing import CliRunner

from ingest.cli import main
from ingest.clock import unix_ms
from ingest.config.model import TLS
from ingest.ledger import UNRELEASED, DeliveryState, DeliveryTerms
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.operations.deliveries import (
    pause_destination,
    release_deliveries,
    resume_destination,
    retry_deliveries,
)
from tests.support.drains import drain_once
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import CT, PynetdicomRemote, ScriptedPeer

CONTEXTS = [(CT, [EXPLICIT])]
HELD = {"pacs": DeliveryTerms(state=DeliveryState.HELD)}


def test_held_delivery_outlives_workers_and_redis_and_is_sent_after_its_release(
    forwarding: Forwarding, tls: TLS
) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        for study in ("1.2.3", "1.2.4"):
            forwarding.record(*(Made(sop=f"{study}.{n}", study=study) for n in range(1, 6)), terms=HELD)
        forwarding.record(Made(sop="1.2.5.1", study="1.2.5"))
        with forwarding.worker() as worker:
            forwarding.wait({"delivered": 1, "held": 10})
            worker.kill()
        with contextlib.closing(forwarding.server.client()) as client:
            client.flushall()
        with forwarding.worker():
            # The worker of this process finds them without a wake-up, and leaves them.
            which = DeliveryFilter(study_uid="1.2.3")
            assert release_deliveries(forwarding.config, which, dry_run=True).counts == {"pacs": 5}
            assert forwarding.states() == {"delivered": 1, "held": 10}
            assert release_deliveries(forwarding.config, which, dry_run=False).counts == {"pacs": 5}
            forwarding.wait({"delivered": 6, "held": 5})
            assert release_deliveries(forwarding.config, which, dry_run=False).counts == {}
    assert sorted(one.sop_instance for one in scp.stored) == [*(f"1.2.3.{n}" for n in range(1, 6)), "1.2.5.1"]


def test_release_during_a_pause_sends_nothing_before_its_end_and_a_retry_releases_nothing(
    plain: Forwarding,
) -> None:
    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve())[1]) as peer:
        plain.add(peer.port)
        plain.record(Made(sop="1.2.3.1"), terms=HELD)
        everything = DeliveryFilter(states=(DeliveryState.HELD,))
        assert retry_deliveries(plain.config, everything, dry_run=False).counts == {}
        pause_destination(plain.config, "pacs", "ann", "upgrade")
        assert release_deliveries(plain.config, everything, dry_run=False).counts == {"pacs": 1}
        drain_once(plain)
        assert plain.states() == {"waiting": 1}
        resume_destination(plain.config, "pacs")
        drain_once(plain)
        assert plain.states() == {"delivered": 1}


def test_retry_sends_a_delivery_that_awaits_its_study(plain: Forwarding) -> None:
    plain.add(1)
    plain.record(Made(sop="1.2.3.1"), terms={"pacs": DeliveryTerms(state=DeliveryState.AWAITING)})
    which = DeliveryFilter(states=(DeliveryState.AWAITING,))
    assert retry_deliveries(plain.config, which, dry_run=False).counts == {"pacs": 1}
    assert plain.states() == {"waiting": 1}


def test_time_until_a_held_delivery_expires_begins_with_its_release(plain: Forwarding) -> None:
    plain.add(1, give_up_hours=0.001)
    plain.record(Made(sop="1.2.3.1"), terms=HELD)
    with plain.ledger.database.begin_write() as connection:
        connection.exec_driver_sql("UPDATE deliveries SET created_at = 1")
    assert plain.ledger.deliveries.expire_overdue("pacs", unix_ms() - 4_000, "too old", unix_ms()) == 0
    release_deliveries(plain.config, DeliveryFilter(destination="pacs"), dry_run=False)
    assert plain.ledger.deliveries.expire_overdue("pacs", unix_ms() - 4_000, "too old", unix_ms()) == 0
    assert plain.states() == {"waiting": 1}


@pytest.mark.parametrize("state", UNRELEASED)
def test_unreleased_delivery_keeps_its_file_is_no_backlog_and_is_dropped_with_its_object(
    state: DeliveryState, plain: Forwarding
) -> None:
    plain.add(1)
    plain.record(Made(sop="1.2.3.1", study="1.2.3"), terms={"pacs": DeliveryTerms(state=state)})
    ledger = plain.ledger
    assert ledger.deliveries.find_due_destinations(unix_ms()) == []
    assert ledger.throughput.read_progress(unix_ms())["pacs"].backlog == 0
    studies = ledger.retention.summarize_studies(["1.2.3"])
    assert [each.owed for each in studies] == [1]
    assert ledger.retention.mark_removing(studies, 10, unix_ms(), only_delivered=True) == []
    ledger.instances.mark_replaced(["1.2.3.1"], unix_ms())
    assert plain.states() == {"dropped": 1}


def test_command_releases_what_it_names_and_the_list_says_why_the_rest_waits(plain: Forwarding) -> None:
    plain.add(1)
    for study in ("1.2.3", "1.2.4"):
        plain.record(Made(sop=f"{study}.1", study=study), terms=HELD)
    path = plain.folder / "ingest.toml"
    path.write_text(
        f'[node]\ndata_dir = "{plain.folder}"\n[queue]\nurl = "{plain.server.url}"\n'
        '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\ntls = false\n'
    )

    def run(*words: str) -> str:
        result = CliRunner().invoke(main, [*words, "-c", str(path)], env={"COLUMNS": "250"})
        return result.output

    assert "say which" in run("deliveries", "release")
    assert run("deliveries", "release", "--study", "1.2.3", "--dry-run") == "pacs: 1 would be released\n"
    assert run("deliveries", "release", "--study", "1.2.3") == "pacs: 1 released\n"
    assert run("deliveries", "release", "--study", "1.2.3") == "nothing to change\n"
    listed = [line for line in run("deliveries").splitlines() if "held" in line]
    assert len(listed) == 1
    assert "1.2.4.1" in listed[0]
    assert "its route holds it; `ingest deliveries release` sends it" in listed[0]
    assert "held by its route" in run("trace", "1.2.4")
    eventually(lambda: plain.states() == {"held": 1, "waiting": 1}, 1)
