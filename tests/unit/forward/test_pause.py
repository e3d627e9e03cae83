"""Paused destinations: what is under way ends, nothing else is sent, and `resume` wakes the workers."""

import threading
import time

import pytest

from ingest.cli import main
from ingest.config.model import TLS
from ingest.errors import UnknownDestinationError
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.operations.deliveries import pause_destination, resume_destination, retry_deliveries
from tests.support.drains import drain_once
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT
from tests.support.nodes import eventually
from tests.support.peers import CT, PynetdicomRemote, Stored

CONTEXTS = [(CT, [EXPLICIT])]


def test_pause_stops_a_running_drain_and_survives_retry_and_a_new_worker(
    forwarding: Forwarding, tls: TLS
) -> None:
    slow = threading.Event()

    def answer(_: Stored) -> int:
        if not slow.is_set():
            time.sleep(0.1)
        return 0

    with PynetdicomRemote(CONTEXTS, tls, answer=answer) as scp:
        forwarding.add(scp.port)
        forwarding.many(100)
        with forwarding.worker() as worker:
            eventually(lambda: len(scp.stored) >= 3, what="a drain is under way")
            pause_destination(forwarding.config, "pacs", "ann", "upgrade")
            paused_at = time.monotonic()
            eventually(lambda: "sending" not in forwarding.states(), 5, "the drain has ended")
            assert time.monotonic() - paused_at < 3
            count = len(scp.stored)
            assert forwarding.states() == {"delivered": count, "waiting": 100 - count}
            worker.kill()
        slow.set()
        result = retry_deliveries(
            forwarding.config, DeliveryFilter(destination="pacs"), dry_run=False
        )  # delivered ones become due again
        assert result.open_circuits["pacs"].reason == "paused by ann: upgrade"
        with forwarding.worker():
            forwarding.wake()
            drain_once(forwarding)
            assert forwarding.states() == {"waiting": 100}
            assert len(scp.stored) == count
            resumed_at = time.monotonic()
            assert resume_destination(forwarding.config, "pacs").before.paused_by == "ann"
            forwarding.wait({"delivered": 100})
            assert time.monotonic() - resumed_at < 60


def test_unknown_destination_is_refused_with_a_suggestion(plain: Forwarding) -> None:
    plain.add(1)
    for act in (
        lambda: pause_destination(plain.config, "pac", "ann"),
        lambda: resume_destination(plain.config, "pac"),
    ):
        with pytest.raises(UnknownDestinationError, match='did you mean "pacs"'):
            act()
    assert plain.ledger.circuits.read_circuits() == {}


def test_commands_pause_and_resume_and_status_names_person_and_reason(plain: Forwarding) -> None:
    from click.testing import CliRunner

    plain.add(1)
    plain.many(2)
    path = plain.folder / "ingest.toml"
    path.write_text(
        f'[node]\ndata_dir = "{plain.folder}"\n[queue]\nurl = "{plain.server.url}"\n'
        '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\ntls = false\n'
    )

    def run(*words: str) -> str:
        return CliRunner().invoke(main, [words[0], "-c", str(path), *words[1:]]).output

    assert "paused; `ingest resume pacs` ends it" in run("pause", "pacs", "--reason", "upgrade")
    assert "was paused already" in run("pause", "pacs", "--reason", "still the upgrade")
    status = " ".join(run("status").split())
    assert "2 wait: still the upgrade" in status
    assert "`ingest resume pacs`" in status
    assert "nothing is sent before `ingest resume pacs`" in run("retry", "--destination", "pacs")
    assert "pacs: resumed" in run("resume", "pacs")
    assert "pacs: was not paused" in run("resume", "pacs")
