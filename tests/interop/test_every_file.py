"""Every storable file that pydicom and pydicom-data ship, through two nodes over TLS, byte by byte.

Many share SOP instance UIDs, so they go in rounds in which no UID comes twice, each with fresh stores.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom.uid import UID

from ingest.requestor.send_files import SendableFile, send_files
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.interop.files import (
    CUT_SHORT,
    CUT_SHORT_AND_ODD,
    REFUSED,
    assert_read_by_others,
    folders,
    on_the_wire,
    read,
    read_with_pydicom,
    storable,
)
from tests.support.nodes import Node, cleaned, destination, eventually
from tests.support.pki import Material
from tests.support.ports import free_port

STORABLE = 242
DICOMDIRS = 8
# What is left out although its name says DICOM, and why. Without File Meta nobody knows the transfer syntax.
NO_FILE_META = {"ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "no_meta.dcm", "rtstruct.dcm"}
NO_FILE_META |= {"OT-PAL-8-face.dcm"}
NO_TRANSFER_SYNTAX = {"meta_missing_tsyntax.dcm"}
NO_SOP_UIDS = {"empty_charset_LEI.dcm", "nested_priv_SQ.dcm"}

SYNTAXES = {
    "1.2.840.10008.1.2": "implicit",
    "1.2.840.10008.1.2.1": "explicit",
    "1.2.840.10008.1.2.2": "big endian",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near-Lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}


def rounds(items: list[SendableFile]) -> list[list[SendableFile]]:
    """Items in as few lists as can be in which no SOP instance UID comes twice."""
    lists: list[list[SendableFile]] = []
    seen: Counter[str] = Counter()
    for item in items:
        number = seen[item.sop_instance_uid]
        seen[item.sop_instance_uid] += 1
        if number == len(lists):
            lists.append([])
        lists[number].append(item)
    return lists


ROUNDS = rounds([item for item in storable() if item.path.name != CUT_SHORT_AND_ODD])


@pytest.fixture
def two_nodes(tmp_path: Path, material: Material) -> Iterator[tuple[Node, Node]]:
    """A fresh node that forwards to a second one, which is fresh too; both over TLS, started side by side."""
    near, far = Node(tmp_path / "near", material), Node(tmp_path / "far", material, tls_port=free_port())
    small = "[receive]\nprocesses = 1\nmin_free_bytes = 0"
    near.configure(receive=small, destinations=destination("far", far.tls_port))
    far.configure(receive=small, workers="[workers]\npersist = 1\nforward = 0")
    with cleaned(near), cleaned(far), ThreadPoolExecutor() as pool:
        for started in [pool.submit(node.start) for node in (near, far)]:
            started.result()
        yield near, far


def remote_of(node: Node, material: Material) -> Remote:
    return Remote("localhost", node.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))


def test_nothing_is_left_out_without_a_reason() -> None:
    """The list is made of what the packages hold, found here without the code that is tested."""
    files = [path for folder in folders() for path in folder.rglob("*") if path.is_file()]
    part_10 = [path for path in files if path.read_bytes()[128:132] == b"DICM"]
    directories = [path for path in part_10 if path.name.startswith("DICOMDIR")]
    named = {path.name for path in files if path.suffix == ".dcm"}

    taken = {item.path for item in storable()}

    left_out = {path.name for path in part_10 if path not in taken and path not in directories}
    assert left_out == NO_TRANSFER_SYNTAX | NO_SOP_UIDS | REFUSED.keys()
    assert named - {path.name for path in part_10} == NO_FILE_META
    assert len(directories) == DICOMDIRS
    assert len(taken) == STORABLE == len(part_10) - DICOMDIRS - len(left_out)
    assert sum(map(len, ROUNDS)) == STORABLE - 1


def test_all_kinds_are_among_them() -> None:
    kinds = {item.transfer_syntax_uid for item in storable()}
    classes = {UID(item.sop_class_uid).name for item in storable()}

    assert kinds == SYNTAXES.keys()
    assert {"Enhanced MR Image Storage", "RT Dose Storage", "RT Plan Storage"} <= classes
    assert {"12-lead ECG Waveform Storage", "Basic Text SR Storage", "Segmentation Storage"} <= classes
    assert any("StudyInstanceUID" not in read_with_pydicom(item.path) for item in ROUNDS[0])


@pytest.mark.parametrize(
    "items",
    [
        # Further rounds hold a few files each, whose SOP instance UID an earlier round has had.
        pytest.param(items, id=f"round{n}-{len(items)}files", marks=[pytest.mark.long] if n > 2 else [])
        for n, items in enumerate(ROUNDS)
    ],
)
def test_every_file_arrives_at_the_second_node_as_it_was_on_the_wire(
    two_nodes: tuple[Node, Node], material: Material, items: list[SendableFile]
) -> None:
    near, far = two_nodes

    summary = send_files(remote_of(near, material), [item.path for item in items], 2)

    assert not summary.failed_files
    eventually(lambda: near.deliveries() == {"delivered": len(items)}, 40, "all delivered")
    arrived = eventually(lambda: len(found := far.stored()) == len(items) and found)
    stored = near.stored()
    assert len(stored) == len(items)
    for item in items:
        wire = on_the_wire(item)
        for path in (stored[item.sop_instance_uid], arrived[item.sop_instance_uid]):
            meta, kept = read(path)
            assert (meta.sop_class_uid, meta.transfer_syntax_uid) == item.context
            assert meta.sop_instance_uid == item.sop_instance_uid
            assert kept == wire, item.path
    sound = [item.sop_instance_uid for item in items if item.path.name not in CUT_SHORT]
    assert_read_by_others(found[uid] for found in (stored, arrived) for uid in sound)


@pytest.mark.parametrize("name", REFUSED)
def test_file_that_cannot_be_stored_is_answered_with_the_reason(
    shared_node: Node, material: Material, name: str
) -> None:
    [path] = [path for folder in folders() for path in folder.rglob(name)]

    [result] = send_files(remote_of(shared_node, material), [path]).results

    assert result.status == REFUSED[name]
    assert result.error
    assert result.sop_instance_uid not in shared_node.stored()


def test_file_that_is_cut_short_at_an_odd_length_is_not_sent_and_says_why(
    shared_node: Node, material: Material
) -> None:
    [path] = [path for folder in folders() for path in folder.rglob(CUT_SHORT_AND_ODD)]

    [result] = send_files(remote_of(shared_node, material), [path]).results

    assert "cannot be padded" in result.error
