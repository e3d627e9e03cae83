"""pynetdicom in both roles over TLS: negotiation in all its items, storing, and being a destination."""

import contextlib
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import UID
from pynetdicom import AE, _config, build_role, sop_class
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)

from ingest.requestor.send_files import SendableFile
from ingest.requestor.store_scu import Context
from tests.interop.files import (
    CUT_SHORT,
    assert_read_by_others,
    by_uid,
    data_set,
    distinct,
    honest,
    made,
    made_uid,
    on_the_wire,
    read,
    read_with_pydicom,
    storable,
    write_made,
)
from tests.support.instances import CT, EXPLICIT, IMPLICIT
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import MR, VERIFICATION, PynetdicomRemote
from tests.support.pki import Material
from tests.support.tls_peers import ssl_client_context

PRIVATE_SOP_CLASS = "1.2.826.0.1.3680043.10.1599.9.1"
PRIVATE_SYNTAX = "1.2.826.0.1.3680043.10.1599.9.2"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
JPEG_2000 = "1.2.840.10008.1.2.4.90"


@pytest.fixture(autouse=True)
def raw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go out as they are, not decoded and encoded anew."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)


@pytest.fixture
def tls(material: Material) -> ssl.SSLContext:
    return ssl_client_context(material.tls("peer"))


@contextlib.contextmanager
def associated(
    node: Node,
    tls: ssl.SSLContext,
    contexts: list[tuple[str, list[str]]],
    ext_neg: list[Any] | None = None,
    max_pdu: int = 16382,
) -> Iterator[Association]:
    """An association of pynetdicom's with the node; released at the end."""
    ae = AE("PYNETDICOM")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    for abstract_syntax, transfer_syntaxes in contexts:
        ae.add_requested_context(abstract_syntax, transfer_syntaxes)
    association = ae.associate(
        "127.0.0.1",
        node.tls_port,
        ae_title="INGEST",
        tls_args=(tls, "localhost"),
        ext_neg=ext_neg,
        max_pdu=max_pdu,
    )
    try:
        assert association.is_established
        yield association
        association.release()
        assert association.is_released
    finally:
        if not (association.is_released or association.is_aborted):
            association.abort()
        association.join(10)


CT_ONLY = [(CT, [EXPLICIT])]


def store(association: Association, path: Path) -> int:
    return int(association.send_c_store(path).Status)


# --- negotiation


def test_echo_over_tls_succeeds(shared_node: Node, tls: ssl.SSLContext) -> None:
    with associated(shared_node, tls, [(VERIFICATION, [IMPLICIT])]) as association:
        assert association.send_c_echo().Status == 0x0000


@pytest.mark.parametrize(("asked", "answered"), [(8, 8), (1, 1), (1000, 64), (0, 64)])
def test_asynchronous_operations_window_is_answered_within_what_was_asked(
    shared_node: Node, tls: ssl.SSLContext, asked: int, answered: int
) -> None:
    item = AsynchronousOperationsWindowNegotiation()
    item.maximum_number_operations_invoked = asked
    item.maximum_number_operations_performed = 1

    with associated(shared_node, tls, CT_ONLY, [item]) as association:
        window = association.acceptor.asynchronous_operations

    assert window == (answered, 1)


def test_no_asynchronous_operations_window_is_answered_when_none_was_asked(
    shared_node: Node, tls: ssl.SSLContext
) -> None:
    with associated(shared_node, tls, CT_ONLY) as association:
        items = [type(item).__name__ for item in association.acceptor.user_information]

    assert "AsynchronousOperationsWindowNegotiation" not in items


def test_stores_within_the_window_are_all_answered_and_kept(
    shared_node: Node, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    """pynetdicom itself waits for every answer, so its messages are sent here one after the other."""
    files = write_made(tmp_path, 8, size=100_000, first=10)
    item = AsynchronousOperationsWindowNegotiation()
    item.maximum_number_operations_invoked = len(files)
    item.maximum_number_operations_performed = 1

    with associated(shared_node, tls, CT_ONLY, [item]) as association:
        association._reactor_checkpoint.clear()
        eventually(lambda: association._is_paused)
        for number, path in enumerate(files, start=1):
            association.dimse.send_msg(
                encode_store_request(number, path), association.accepted_contexts[0].context_id
            )
        answers = [association.dimse.get_msg(block=True)[1] for _ in files]
        association._reactor_checkpoint.set()

    assert sorted(answer.MessageIDBeingRespondedTo for answer in answers) == list(range(1, len(files) + 1))
    assert {answer.Status for answer in answers} == {0x0000}
    expected = by_uid(files)
    stored = eventually(lambda: (found := shared_node.stored()).keys() >= expected.keys() and found)
    assert all(data_set(stored[uid]) == data_set(path) for uid, path in expected.items())


def encode_store_request(message_id: int, path: Path) -> C_STORE:
    meta, _ = read(path)
    request = C_STORE()
    request.MessageID = message_id
    request.AffectedSOPClassUID = UID(meta.sop_class_uid)
    request.AffectedSOPInstanceUID = UID(meta.sop_instance_uid)
    request.Priority = 2
    request._dataset_path = (path, path.stat().st_size - len(data_set(path)))
    return request


def test_role_selection_is_answered_as_scp_of_storage(shared_node: Node, tls: ssl.SSLContext) -> None:
    roles = [build_role(CT, scu_role=True, scp_role=True)]

    with associated(shared_node, tls, [(CT, [EXPLICIT]), (MR, [EXPLICIT])], roles) as association:
        accepted = {str(context.abstract_syntax): context for context in association.accepted_contexts}
        answered = association.acceptor.role_selection

    assert accepted.keys() == {CT, MR}
    assert [(str(uid), item.scu_role, item.scp_role) for uid, item in answered.items()] == [(CT, True, False)]
    assert accepted[CT].as_scu
    assert not accepted[CT].as_scp


def test_context_for_a_requestor_that_would_only_be_scp_is_refused(
    shared_node: Node, tls: ssl.SSLContext
) -> None:
    roles = [build_role(CT, scu_role=False, scp_role=True)]

    with associated(shared_node, tls, [(CT, [EXPLICIT]), (MR, [EXPLICIT])], roles) as association:
        assert [str(context.abstract_syntax) for context in association.accepted_contexts] == [MR]
        assert [context.result for context in association.rejected_contexts] == [3]


def test_extended_negotiation_and_user_identity_do_not_hinder(
    shared_node: Node, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid = CT
    extended.service_class_application_information = b"\2\0\0\1\0\0"
    common = SOPClassCommonExtendedNegotiation()
    common.sop_class_uid = CT
    common.service_class_uid = "1.2.840.10008.4.2"
    common.related_general_sop_class_identification = [CT]
    identity = UserIdentityNegotiation()
    identity.user_identity_type = 2
    identity.primary_field = b"someone"
    identity.secondary_field = b"secret-of-someone"
    [path] = write_made(tmp_path, 1, first=30)

    with associated(shared_node, tls, CT_ONLY, [extended, common, identity]) as association:
        assert store(association, path) == 0x0000

    eventually(lambda: made_uid(30) in shared_node.stored())
    assert "secret-of-someone" not in shared_node.log


def test_contexts_that_cannot_be_taken_say_why_and_the_others_work(
    shared_node: Node, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    [path] = write_made(tmp_path, 1, first=31)
    contexts = [(STUDY_ROOT_FIND, [IMPLICIT]), (MR, [PRIVATE_SYNTAX]), (CT, [EXPLICIT])]

    with associated(shared_node, tls, contexts) as association:
        assert {str(c.abstract_syntax): c.result for c in association.rejected_contexts} == {
            STUDY_ROOT_FIND: 3,
            MR: 4,
        }
        assert store(association, path) == 0x0000


def test_of_several_transfer_syntaxes_the_first_that_is_proposed_is_taken(
    shared_node: Node, tls: ssl.SSLContext
) -> None:
    with associated(shared_node, tls, [(CT, [JPEG_2000, EXPLICIT, IMPLICIT])]) as association:
        assert association.accepted_contexts[0].transfer_syntax == [JPEG_2000]


@pytest.mark.parametrize("max_pdu", [0, 4096])
def test_answers_fit_any_pdu_length(
    shared_node: Node, tls: ssl.SSLContext, tmp_path: Path, max_pdu: int
) -> None:
    [path] = write_made(tmp_path, 1, first=40 + max_pdu)

    with associated(shared_node, tls, CT_ONLY, max_pdu=max_pdu) as association:
        assert store(association, path) == 0x0000


# --- storing


def test_private_sop_class_is_stored(shared_node: Node, tls: ssl.SSLContext, tmp_path: Path) -> None:
    path = tmp_path / "private.dcm"
    path.write_bytes(made(50, sop_class=PRIVATE_SOP_CLASS))

    with associated(shared_node, tls, [(PRIVATE_SOP_CLASS, [EXPLICIT])]) as association:
        assert store(association, path) == 0x0000

    stored = eventually(lambda: shared_node.stored().get(made_uid(50)))
    assert data_set(stored) == data_set(path)
    assert read_with_pydicom(stored).file_meta.MediaStorageSOPClassUID == PRIVATE_SOP_CLASS


def test_instance_without_study_is_stored_under_a_name_made_for_it(
    shared_node: Node, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    path = tmp_path / "no-study.dcm"
    path.write_bytes(made(51, study=None))

    with associated(shared_node, tls, CT_ONLY) as association:
        assert store(association, path) == 0x0000

    stored = eventually(lambda: shared_node.stored().get(made_uid(51)))
    assert data_set(stored) == data_set(path)
    [(study, note)] = shared_node.query(
        "SELECT study_uid, note FROM instances WHERE sop_instance_uid = ?", made_uid(51)
    )
    assert study == ""
    assert note


def test_file_meta_says_who_sent_it_and_over_what(
    shared_node: Node, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    [path] = write_made(tmp_path, 1, first=52)

    with associated(shared_node, tls, CT_ONLY) as association:
        assert store(association, path) == 0x0000

    meta = read_with_pydicom(eventually(lambda: shared_node.stored().get(made_uid(52)))).file_meta
    assert meta.SourceApplicationEntityTitle == meta.SendingApplicationEntityTitle == "PYNETDICOM"
    assert meta.ReceivingApplicationEntityTitle == "INGEST"
    assert meta.SourcePresentationAddress.startswith("dicom-tls://127.0.0.1:")


# --- as a destination


def two_of_each_kind() -> list[SendableFile]:
    """Shipped files that pynetdicom can send and take: it names what it sends as the File Meta does, which in
    some files lies, and takes no retired SOP class.
    """
    kinds: Counter[Context] = Counter()
    items = []
    for item in distinct(storable()):
        sendable = honest(item) and item.size < 200_000
        served = item.sop_class_uid in sop_class._STORAGE_CLASSES.values()
        if sendable and served and item.path.name not in CUT_SHORT and kinds[item.context] < 2:
            kinds[item.context] += 1
            items.append(item)
    return items


def test_every_transfer_syntax_arrives_at_a_pynetdicom_scp_as_it_was_sent(
    make_node: Callable[..., Node], tls: ssl.SSLContext, material: Material
) -> None:
    items = two_of_each_kind()
    kinds = dict.fromkeys(item.context for item in items)
    proposals = {sop: [syntax for other, syntax in kinds if other == sop] for sop, _ in kinds}
    with PynetdicomRemote(list(proposals.items()), tls=material.tls("remote")) as remote:
        node = make_node(destinations=destination("remote", remote.port)).start()

        with associated(node, tls, [(sop, [syntax]) for sop, syntax in kinds]) as association:
            assert {store(association, item.path) for item in items} == {0x0000}

        eventually(lambda: node.deliveries() == {"delivered": len(items)}, what="all delivered")
    arrived = {stored.sop_instance: stored for stored in remote.stored}
    assert len(remote.stored) == len(arrived) == len(items)
    for item in items:
        stored = arrived[item.sop_instance_uid]
        assert (stored.sop_class, stored.transfer_syntax) == item.context
        assert stored.data_set == on_the_wire(item)
    assert {transfer_syntax for _, transfer_syntax in kinds} == {s.transfer_syntax for s in remote.stored}
    assert_read_by_others(node.stored().values())
