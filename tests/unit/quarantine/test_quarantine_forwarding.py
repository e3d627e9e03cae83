"""What collided is never forwarded by itself; once a person has released it, it is, by real workers."""

from collections.abc import Callable
from pathlib import Path

from ingest.workers.quarantine.command import release_instances
from tests.support.forwarding import WorkerProcess
from tests.support.instances import Made
from tests.support.nodes import eventually
from tests.support.peers import CT, EXPLICIT, PynetdicomRemote
from tests.support.persisting import Site


def test_conflict_is_forwarded_once_it_is_released_and_not_before(
    make_persist_site: Callable[..., Site], tmp_path: Path
) -> None:
    first, second, third = Made(), Made(pixels=b"other"), Made(sop="1.7.1")
    with PynetdicomRemote([(CT, [EXPLICIT])]) as remote:
        site = make_persist_site(
            destinations=[
                {
                    "name": "pacs",
                    "ae_title": "REMOTE",
                    "host": "127.0.0.1",
                    "port": remote.port,
                    "tls": False,
                    "linger_seconds": 0.1,
                }
            ]
        )
        forwarder = WorkerProcess(site.config, tmp_path / "forward.log")
        try:
            for made in (first, second):
                site.receive(made)
                site.work()
            eventually(lambda: len(remote.stored) == 1, 20, "the first object is forwarded")
            # What comes after the conflict overtakes it, for ever.
            site.receive(third)
            site.work()
            eventually(lambda: len(remote.stored) == 2, 20, "the next instance is forwarded")
            assert [one.data_set for one in remote.stored] == [first.data_set, third.data_set]
            [conflict] = [row.id for row in site.instances() if row.state.value == "quarantined"]
            assert not release_instances(site.config, [conflict]).failures
            eventually(lambda: len(remote.stored) == 3, 20, "the released object is forwarded")
            assert remote.stored[2].data_set == second.data_set
            with site.ledger() as ledger:
                eventually(
                    lambda: (
                        [one.state.value for one in ledger.deliveries.find_by_instance(conflict)]
                        == ["delivered"]
                    ),
                    20,
                    "the ledger says so",
                )
            assert forwarder.terminate() == 0
        finally:
            forwarder.kill()
        assert len(remote.stored) == 3
