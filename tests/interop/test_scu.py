"""What every kind of remote gets over TLS: PDUs no longer than it wants, and nothing that it does not take.

Remotes are DCMTK's storescp, Orthanc, pynetdicom and a second node.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.files import by_uid, data_set, made, made_uid, write_made
from tests.interop.orthanc import orthanc
from tests.interop.test_destinations import send
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import CT, EXPLICIT, PynetdicomRemote, storescp
from tests.support.pki import Material

PRIVATE_SOP_CLASS = "1.2.826.0.1.3680043.10.1599.9"
"""None of the remotes takes it."""

COUNT = 4
Holds = Callable[[], dict[str, bytes]]
Begin = Callable[[str, int], contextlib.AbstractContextManager[tuple[int, Holds]]]


@pytest.fixture
def begin(make_node: Callable[..., Node], material: Material, tmp_path: Path) -> Begin:
    """Starts a remote of some kind that wants PDUs of some length: its port, and what it holds by UID."""
    folder, tls = tmp_path / "remote holds", material.tls("remote")

    @contextlib.contextmanager
    def dcmtk(length: int) -> Iterator[tuple[int, Holds]]:
        with storescp(folder, tls, "--max-pdu", str(length)) as port:
            yield port, lambda: {uid: data_set(path) for uid, path in by_uid(folder.iterdir()).items()}

    @contextlib.contextmanager
    def of_orthanc(length: int) -> Iterator[tuple[int, Holds]]:
        settings = {"MaximumPduLength": length, "UnknownSopClassAccepted": False}
        with orthanc(material, "remote", **settings) as server:
            yield (
                server.dicom_port,
                lambda: {uid: data_set(path) for uid, path in server.files(folder).items()},
            )

    @contextlib.contextmanager
    def of_pynetdicom(length: int) -> Iterator[tuple[int, Holds]]:
        with PynetdicomRemote([(CT, [EXPLICIT])], tls, max_pdu_length=length) as remote:
            yield remote.port, lambda: {one.sop_instance: one.data_set for one in remote.stored}

    @contextlib.contextmanager
    def second_node(length: int) -> Iterator[tuple[int, Holds]]:
        limits = f"max_pdu_length = {length}\naccept_unknown_sop_classes = false\nmin_free_bytes = 0"
        remote = make_node("second", receive=f"[receive]\n{limits}").start()

        def holds() -> dict[str, bytes]:
            eventually(lambda: remote.spooled() == [], what="the second node has stored all")
            return {uid: data_set(path) for uid, path in remote.stored().items()}

        yield remote.tls_port, holds

    kinds = {
        "storescp": dcmtk,
        "Orthanc": of_orthanc,
        "pynetdicom": of_pynetdicom,
        "node": second_node,
    }
    return lambda kind, length: kinds[kind](length)


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        *(("storescp", 4096), ("storescp", 131072), ("Orthanc", 4096), ("Orthanc", 131072)),
        # 0: no limit (PS3.8 D.1.1).
        *(("pynetdicom", 4096), ("pynetdicom", 0), ("node", 4096), ("node", 4194304)),
    ],
)
def test_remote_gets_all_it_takes_in_pdus_as_long_as_it_wants(
    make_node: Callable[..., Node], material: Material, tmp_path: Path, begin: Begin, kind: str, length: int
) -> None:
    files = write_made(tmp_path / "made", COUNT, size=300_000)
    refused = tmp_path / "refused.dcm"
    refused.write_bytes(made(COUNT, sop_class=PRIVATE_SOP_CLASS))
    with begin(kind, length) as (port, holds):
        node = make_node(destinations=destination("remote", port)).start()

        send(node, material, [files[0], refused, *files[1:]])

        eventually(lambda: node.deliveries() == {"delivered": COUNT, "dead": 1}, 30, "all have ended")
        assert holds() == {made_uid(number): data_set(path) for number, path in enumerate(files)}
    [(uid, error)] = node.query(
        "SELECT sop_instance_uid, last_error FROM deliveries JOIN instances ON instances.id = instance_id "
        "WHERE deliveries.state = 'dead'"
    )
    assert uid == made_uid(COUNT)
    assert "no context accepted" in error
