"""Orthanc calls the node over TLS: C-ECHO and C-STORE, as its users start them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest

from tests.interop.files import (
    CUT_SHORT,
    assert_read_by_others,
    by_uid,
    data_set,
    distinct,
    honest,
    read,
    storable,
    write_made,
)
from tests.interop.orthanc import Orthanc, orthanc
from tests.support.nodes import Node, eventually
from tests.support.peers import storescp
from tests.support.pki import Material

NEEDED = {0x00100020, 0x0020000D, 0x0020000E}
"""Attributes without which Orthanc has no place for an instance: patient ID, study and series UID."""

ALL_UN = "explicit_VR-UN.dcm"
"""Every element has VR UN in it, of which Orthanc makes UIDs like "31" in the command."""


@pytest.fixture(scope="module")
def sender(material: Material) -> Iterator[Orthanc]:
    """An Orthanc that the node trusts; it is told of modalities over REST."""
    with orthanc(material, "peer", DicomScuTimeout=20) as server:
        yield server


def test_echo_over_tls_succeeds(sender: Orthanc, shared_node: Node) -> None:
    modality = sender.know("node", shared_node.tls_port)

    assert sender.post(f"{modality}/echo", {}) == {}


def test_plain_echo_is_served_by_the_plain_listener_alone(sender: Orthanc, shared_node: Node) -> None:
    plain = sender.know("plain", shared_node.plain_port, tls=False)
    wrong = sender.know("wrong", shared_node.tls_port, tls=False)

    assert sender.post(f"{plain}/echo", {}) == {}
    with pytest.raises(AssertionError, match="/echo"):
        sender.post(f"{wrong}/echo", {})

    eventually(
        lambda: [
            e for e in shared_node.events("tls_handshake_failed") if "plain DICOM" in e.get("remedy", "")
        ],
        5,
        "the mismatch in the log",
    )


def test_orthanc_that_is_not_trusted_is_refused(material: Material, shared_node: Node) -> None:
    before = len(shared_node.events("tls_handshake_failed"))
    with orthanc(material, "stranger") as stranger:
        modality = stranger.know("node", shared_node.tls_port)

        with pytest.raises(AssertionError, match="/echo"):
            stranger.post(f"{modality}/echo", {})

    refused = eventually(lambda: shared_node.events("tls_handshake_failed")[before:], 5, "the refusal")
    assert "self-signed" in refused[0]["verify_message"]


def test_what_orthanc_stores_is_kept_as_it_was_on_the_wire(
    sender: Orthanc, make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    """What was on the wire is what DCMTK's storescp wrote, which keeps data sets as they come (+B)."""
    node = make_node().start()
    items = [item for item in distinct(storable()) if item.size < 300_000 and item.path.name not in CUT_SHORT]
    items = [
        item
        for item in items
        if item.path.name != ALL_UN and honest(item) and pydicom.dcmread(item.path).keys() >= NEEDED
    ]
    one_of_each = list({item.context: item for item in items}.values())
    paths = [*(item.path for item in one_of_each), *write_made(tmp_path / "made", 20)]
    names = [sender.upload(path) for path in paths]
    with storescp(tmp_path / "wire", material.tls("remote"), "--promiscuous") as port:
        reference = sender.post(f"{sender.know('reference', port)}/store", names)

    done = sender.post(f"{sender.know('node', node.tls_port)}/store", names)

    assert (done["FailedInstancesCount"], done["InstancesCount"]) == (0, len(paths))
    assert reference["FailedInstancesCount"] == 0
    wire = by_uid((tmp_path / "wire").iterdir())
    stored = eventually(lambda: len(found := node.stored()) == len(wire) and found)
    for uid, path in wire.items():
        expected, kept = read(path), read(stored[uid])
        assert kept[0].transfer_syntax_uid == expected[0].transfer_syntax_uid
        assert kept[1] == expected[1]
    same = sum(data_set(stored[uid]) == data_set(path) for uid, path in by_uid(paths).items())
    assert same > 0.6 * len(paths), (same, len(paths))
    assert len({item.transfer_syntax_uid for item in one_of_each}) >= 8
    assert_read_by_others(stored.values())
