"""DCMTK's storescp and Orthanc as destinations over TLS: what is sent to the node arrives there as it was."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ingest.requestor.send_files import SendableFile, send_files
from ingest.requestor.store_scu import Context
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.interop.files import (
    CUT_SHORT,
    by_uid,
    data_set,
    distinct,
    made_uid,
    on_the_wire,
    read,
    storable,
    unreadable_by_dcmdump,
    write_made,
)
from tests.interop.orthanc import orthanc
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import storescp
from tests.support.pki import Material

COLOR_PALETTE = "1.2.840.10008.5.1.4.39.1"
"""Neither storescp nor Orthanc takes this SOP class."""
REFUSED_BY_ORTHANC = frozenset(
    {
        # Without a patient, study or series Orthanc has no place for them.
        *("JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "SC_rgb_jls_lossy_line.dcm"),
        # DCMTK, with which Orthanc reads, stumbles over what is in them.
        *("chrSQEncoding.dcm", "UN_sequence.dcm", "no_meta_group_length.dcm", "priv_SQ.dcm"),
        "explicit_VR-UN.dcm",
    }
)


def send(node: Node, material: Material, paths: list[Path]) -> None:
    """Files into the node over TLS; all must be taken."""
    remote = Remote("localhost", node.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))
    summary = send_files(remote, paths, 2)
    assert not summary.failed_files
    assert len(summary.results) == len(paths)


def delivered(node: Node, count: int, seconds: float = 30) -> None:
    """Wait until all deliveries are done."""
    eventually(
        lambda: node.deliveries() == {"delivered": count}, seconds, f"{count} delivered, {node.deliveries()}"
    )


def some_of_each_kind(each: int = 3) -> list[SendableFile]:
    """Shipped files of every SOP class and transfer syntax, no SOP instance UID twice."""
    kinds: Counter[Context] = Counter()
    items = []
    for item in distinct(i for i in storable() if i.size < 1_000_000 and i.path.name not in CUT_SHORT):
        kinds[item.context] += 1
        if kinds[item.context] <= each:
            items.append(item)
    return items


def test_storescp_gets_every_kind_as_it_was_sent(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    items = [item for item in some_of_each_kind() if item.sop_class_uid != COLOR_PALETTE]
    with storescp(tmp_path / "arrived", material.tls("remote"), "--promiscuous") as port:
        node = make_node(destinations=destination("remote", port)).start()

        send(node, material, [item.path for item in items])

        delivered(node, len(items))
    arrived = by_uid((tmp_path / "arrived").iterdir())
    assert len(arrived) == len(items)
    for item in items:
        meta, kept = read(arrived[item.sop_instance_uid])
        assert (meta.sop_class_uid, meta.transfer_syntax_uid) == item.context
        assert kept == on_the_wire(item)


def test_storescp_that_wants_small_pdus_gets_them(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    files = write_made(tmp_path / "made", 3, size=1_000_000)
    with storescp(tmp_path / "arrived", material.tls("remote"), "--max-pdu", "4096") as port:
        node = make_node(destinations=destination("remote", port)).start()

        send(node, material, files)

        delivered(node, len(files))
    arrived = by_uid((tmp_path / "arrived").iterdir())
    assert {uid: data_set(path) for uid, path in arrived.items()} == {
        uid: data_set(path) for uid, path in by_uid(files).items()
    }


def test_storescp_that_does_not_trust_the_node_gets_nothing_until_it_does(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    [path] = write_made(tmp_path / "made", 1)
    suspicious = material.tls("remote").model_copy(update={"trusted": (material.certificate("peer"),)})
    with storescp(tmp_path / "suspicious", suspicious) as port:
        node = make_node(destinations=destination("remote", port, retry_first_seconds=0.2)).start()
        send(node, material, [path])
        [(error,)] = eventually(lambda: node.query("SELECT last_error FROM circuits WHERE last_error <> ''"))
        assert "alert" in error
    assert not list((tmp_path / "suspicious").iterdir())

    with storescp(tmp_path / "arrived", material.tls("remote"), port=port):
        delivered(node, 1)

    assert by_uid((tmp_path / "arrived").iterdir()).keys() == {made_uid(0)}


def test_storescp_with_a_certificate_that_is_not_trusted_gets_nothing(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    [path] = write_made(tmp_path / "made", 1)
    with storescp(tmp_path / "stranger", material.tls("stranger")) as port:
        node = make_node(destinations=destination("remote", port)).start()

        send(node, material, [path])

        [(error,)] = eventually(lambda: node.query("SELECT last_error FROM circuits WHERE last_error <> ''"))
    assert "certificate" in error
    assert not list((tmp_path / "stranger").iterdir())


def test_orthanc_gets_every_kind_as_it_was_sent(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    """Orthanc takes a data set apart and writes it anew, so what it gets straight from us is the measure.

    About half of what it writes is as it came, and is compared with the file that was sent, too.
    """
    items = [item for item in some_of_each_kind() if item.sop_class_uid != COLOR_PALETTE]
    items = [item for item in items if item.path.name not in REFUSED_BY_ORTHANC]
    paths = [item.path for item in items]
    with orthanc(material, "remote") as direct:
        remote = Remote(
            "localhost", direct.dicom_port, "ORTHANC", "TESTS", build_client_context(material.tls("node"))
        )
        summary = send_files(remote, paths, 2)
        assert not summary.failed_files
        expected = direct.files(tmp_path / "direct")
    with orthanc(material, "remote") as server:
        node = make_node(destinations=destination("orthanc", server.dicom_port)).start()

        send(node, material, paths)

        delivered(node, len(items))
        arrived = server.files(tmp_path / "arrived")
    same = 0
    for item in items:
        meta, kept = read(arrived[item.sop_instance_uid])
        assert (meta.sop_class_uid, meta.transfer_syntax_uid) == item.context
        assert kept == data_set(expected[item.sop_instance_uid])
        same += kept == on_the_wire(item)
    assert same > 0.4 * len(items), (same, len(items))
    assert not unreadable_by_dcmdump(list(arrived.values()))


def test_orthanc_gets_the_same_bytes_of_what_it_writes_as_it_came(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    files = write_made(tmp_path / "made", 100, size=20_000)
    with orthanc(material, "remote") as server:
        node = make_node(destinations=destination("orthanc", server.dicom_port, associations=2)).start()

        send(node, material, files)

        delivered(node, len(files))
        arrived = server.files(tmp_path / "arrived")
    assert {uid: data_set(path) for uid, path in arrived.items()} == {
        uid: data_set(path) for uid, path in by_uid(files).items()
    }
