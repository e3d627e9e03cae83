"""Associations that are refused, and why: who calls, what is asked for, and what we have room for."""

import contextlib
import signal
from collections.abc import Callable

import pytest

from ingest.dicom import dimse, wire
from ingest.tls.keys import pairs
from tests.faults.caller import (
    CALLED_UNKNOWN,
    CALLING_UNKNOWN,
    FIND,
    INVALID,
    LOCAL_LIMIT,
    PRINTER,
    VERIFICATION,
    Caller,
    command,
    data_pdus,
    new_uid,
    request,
    with_titles,
)
from tests.faults.watch import Watch, nothing_received, receive
from tests.support.instances import CT, IMPLICIT, Made
from tests.support.nodes import Node, eventually
from tests.support.pki import Material

JPEG = "1.2.840.10008.1.2.4.50"
PRIVATE = "1.2.826.0.1.3680043.2.1.1"


def peers(material: Material) -> str:
    fingerprint = pairs.read_identities(material.certificate("peer"))[0].fingerprint
    return f"""
[[peers]]
ae_title = "BOUND"
certificate = "{fingerprint}"
[[peers]]
ae_title = "NAMED"
certificate = "CN=other"
[[peers]]
ae_title = "ELSEWHERE"
hosts = ["10.1.0.0/16"]
[[peers]]
ae_title = "ECHOER"
allow = ["echo"]
[[peers]]
ae_title = "FREE"
"""


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Node], material: Material) -> Node:
    """Lets in known callers only, and takes neither JPEG nor unknown SOP classes."""
    return start_node(
        receive=receive(
            check_called_ae=True,
            accept_unknown_sop_classes=False,
            transfer_syntaxes=["1.2.840.10008.1.2", "1.2.840.10008.1.2.1*"],
        ),
        peers=peers(material),
    )


# --- who calls


@pytest.mark.parametrize(("title", "own", "others"), [("BOUND", "peer", "other"), ("NAMED", "other", "peer")])
def test_only_the_certificate_bound_to_an_ae_title_may_use_it(
    node: Node, watch: Watch, title: str, own: str, others: str
) -> None:
    with Caller.tls(node, others) as caller:
        assert caller.rejected(calling=title) == CALLING_UNKNOWN
        caller.expect_closed()
    event = watch.event("association_rejected", calling_ae=title)
    assert event["subject"] == f"CN={others}"
    binding = (
        "CN=other"
        if title == "NAMED"
        else pairs.read_identities(node.material.certificate("peer"))[0].fingerprint
    )
    assert all(text in event["reason"] for text in (f"CN={others}", title, binding))
    with Caller.tls(node, own) as caller:
        caller.associate(calling=title)
        assert caller.echo() == 0
        caller.release()


def test_a_bound_ae_title_cannot_be_used_without_a_certificate(node: Node, watch: Watch) -> None:
    with Caller.plain(node) as caller:
        assert caller.rejected(calling="BOUND") == CALLING_UNKNOWN
    watch.event("association_rejected", calling_ae="BOUND", reason="none was presented")


@pytest.mark.parametrize("connect", [Caller.plain, Caller.tls])
def test_an_unknown_calling_ae_title_is_rejected(
    node: Node, watch: Watch, connect: Callable[[Node], Caller]
) -> None:
    with connect(node) as caller:
        assert caller.rejected(calling="NOBODY") == CALLING_UNKNOWN
        caller.expect_closed()
    watch.event("association_rejected", address="127.0.0.1", reason="'NOBODY'")


def test_a_calling_ae_title_of_another_network_is_rejected(node: Node, watch: Watch) -> None:
    with Caller.plain(node) as caller:
        assert caller.rejected(calling="ELSEWHERE") == CALLING_UNKNOWN
    watch.event("association_rejected", reason="may not call from 127.0.0.1")


def test_an_unknown_called_ae_title_is_rejected(node: Node, watch: Watch) -> None:
    with Caller.plain(node) as caller:
        assert caller.rejected(calling="FREE", called="SOMEONE") == CALLED_UNKNOWN
        caller.expect_closed()
    watch.event("association_rejected", reason="'SOMEONE' is not ours")


@pytest.mark.parametrize(
    ("calling", "called", "answer"), [(b"", b"INGEST", CALLING_UNKNOWN), (b"FREE", b"", CALLED_UNKNOWN)]
)
def test_an_ae_title_of_spaces_is_nobody(
    node: Node, calling: bytes, called: bytes, answer: wire.AssociateReject
) -> None:
    with Caller.plain(node) as caller:
        assert wire.decode_associate_rj(caller.ask(with_titles(calling, called))) == answer


@pytest.mark.parametrize("calling", [b"A\\B", b"A\nB", b"A\x1b[2J", b"\xc4\xd6", b"FREE\xc4"])
def test_an_ae_title_with_characters_that_none_has_is_rejected_as_a_stranger(
    node: Node, watch: Watch, calling: bytes
) -> None:
    with Caller.plain(node) as caller:
        assert wire.decode_associate_rj(caller.ask(with_titles(calling, b"INGEST"))) == CALLING_UNKNOWN
        caller.expect_closed()
    watch.event("association_rejected", reason="?")


@pytest.mark.parametrize(
    ("calling", "called"),
    [
        (b"FREE\0\xcd\xcd\xcd\xcd", b"INGEST"),
        (b"FREE\0OLDNAME", b"INGEST\0\xcc\xcc"),
        (b" FREE \0 ", b"  INGEST"),
    ],
)
def test_an_ae_title_ends_before_its_nul(node: Node, calling: bytes, called: bytes) -> None:
    with Caller.plain(node) as caller:
        assert caller.ask(with_titles(calling, called))[0] == wire.ASSOCIATE_AC
        assert caller.echo() == 0
        caller.release()


def test_a_request_without_contexts_is_rejected_and_does_not_shut_its_address_out(
    start_node: Callable[..., Node],
) -> None:
    node = start_node(receive=receive(max_failures_per_minute=2))
    for _ in range(4):
        with Caller.plain(node) as caller:
            # PS3.8 Table 9-21: rejected-permanent, service-provider (ACSE), no reason given
            assert caller.rejected(()) == wire.AssociateReject(1, 2, 1)
    with Caller.plain(node) as caller:
        caller.associate()
        assert caller.echo() == 0


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        # PS3.8 Table 9-21: application context name not supported; protocol version not supported
        ({"application_context": "1.2.3"}, wire.AssociateReject(1, 1, 2)),
        ({"protocol_version": 2}, wire.AssociateReject(1, 2, 2)),
    ],
)
def test_another_protocol_is_rejected(
    node: Node, fields: dict[str, object], answer: wire.AssociateReject
) -> None:
    with Caller.plain(node) as caller:
        assert caller.rejected(calling="FREE", **fields) == answer


# --- what is asked for


def test_without_an_acceptable_context_the_association_is_accepted_and_each_context_says_why(
    node: Node,
) -> None:
    proposed = ((1, FIND, IMPLICIT), (3, PRINTER, IMPLICIT), (5, PRIVATE, IMPLICIT), (7, CT, JPEG))
    with Caller.plain(node) as caller:
        accept = caller.associate(proposed, calling="FREE")
        # PS3.8 Table 9-18: abstract syntax (3), transfer syntaxes (4) not supported
        assert [(c.context_id, c.result) for c in accept.contexts] == [(1, 3), (3, 3), (5, 3), (7, 4)]
        caller.release()


def test_a_message_on_a_context_that_was_refused_is_aborted(node: Node, watch: Watch) -> None:
    with Caller.plain(node) as caller:
        caller.associate(((1, CT, JPEG), (3, VERIFICATION, IMPLICIT)), calling="FREE")
        assert caller.echo() == 0
        caller.begin_store(new_uid())
        caller.expect_abort(INVALID)
    watch.event("peer_broke_protocol", error="context 1 was not accepted")
    nothing_received(node)


def test_a_peer_that_may_only_echo_gets_no_storage_context(node: Node) -> None:
    with Caller.plain(node) as caller:
        accept = caller.associate(calling="ECHOER")
        assert [c.context_id for c in accept.contexts if c.result == 0] == [3]
        assert caller.echo() == 0
        # Nor can it store on the context that it got: PS3.7 C.5.19, SOP class not supported.
        for sop_class in (VERIFICATION, CT):
            caller.begin_store("1.2.3", 3, sop_class=sop_class)
            caller.send(data_pdus(3, Made(sop="1.2.3").data_set))
            assert caller.response().status == 0x0122
    nothing_received(node)


@pytest.mark.parametrize("syntax", [b"../../../etc", b"1.2.3/../..", b"1.2.840.10008.1.2.1/../../x"])
def test_a_context_whose_names_are_no_uids_is_not_accepted(node: Node, syntax: bytes) -> None:
    stand_in = "1.9".ljust(len(syntax), "9")
    proposed = ((1, stand_in, IMPLICIT), (3, CT, stand_in))
    data = wire.encode_associate_rq(request(proposed, calling="FREE")).replace(stand_in.encode(), syntax)
    with Caller.plain(node) as caller:
        accept = wire.decode_associate_ac(caller.ask(data))
        assert [c.result for c in accept.contexts] == [3, 4]


# --- what we have room for


def test_too_many_associations_are_rejected_until_one_ends(start_node: Callable[..., Node]) -> None:
    node = start_node(receive=receive(max_associations=3, max_associations_per_peer=3))
    watch = Watch(node)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller.plain(node)) for _ in range(3)]
        for caller in callers:
            caller.associate()
        with Caller.tls(node) as caller:
            assert caller.rejected() == LOCAL_LIMIT
            caller.expect_closed()
        watch.event("association_rejected", reason="max_associations is 3")
        assert [caller.echo() for caller in callers] == [0, 0, 0]
        callers[0].release()
        callers[0].sock.close()

        def accepted() -> bool:
            with Caller.plain(node) as caller:
                return caller.ask(request())[0] == 2

        eventually(accepted, 5)


def test_too_little_free_space_rejects_associations(start_node: Callable[..., Node]) -> None:
    node = start_node(receive=receive(min_free_bytes=2**62))
    watch = Watch(node)
    with Caller.tls(node) as caller:
        assert caller.rejected() == LOCAL_LIMIT
        caller.expect_closed()
    watch.event("association_rejected", reason="min_free_bytes")


def test_a_full_spool_rejects_associations_and_says_a700_on_running_ones_until_there_is_room(
    start_node: Callable[..., Node],
) -> None:
    # Nobody persists, so that what is received stays in the spool.
    node = start_node(receive=receive(spool_max_bytes=100_000), workers="[workers]\npersist = 0")
    watch = Watch(node)
    made = Made(sop=new_uid(), pixels=bytes(100_000))
    with Caller.plain(node) as caller:
        caller.associate()
        assert caller.store(made).status == 0
        (kept,) = node.spooled()
        eventually(lambda: {e["pid"] for e in watch.events("spool_full")} == _listening(node), 5)
        assert caller.store(Made(sop=new_uid())).status == 0xA700
        assert caller.echo() == 0
        with Caller.plain(node) as other:
            assert other.rejected() == LOCAL_LIMIT
        watch.event("association_rejected", reason="spool_max_bytes is 100000")
        assert (node.spooled(), node.partials()) == ([kept], [])
        assert kept.read_bytes().endswith(made.data_set)
        kept.unlink()
        eventually(lambda: {e["pid"] for e in watch.events("spool_has_room")} == _listening(node), 5)
        assert caller.store(Made(sop=new_uid())).status == 0
        caller.release()


def _listening(node: Node) -> set[int]:
    return {child.pid for child in node.children("ingest-listen")}


def test_a_draining_node_rejects_new_associations_and_lets_running_ones_finish(
    start_node: Callable[..., Node],
) -> None:
    node = start_node(receive=receive())
    watch = Watch(node)
    made = Made(sop=new_uid(), pixels=bytes(1000))
    with Caller.tls(node) as caller:
        caller.associate()
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        eventually(lambda: {e["pid"] for e in watch.events("draining")} >= _listening(node), 5)
        with Caller.tls(node) as other:
            assert other.rejected() == LOCAL_LIMIT
        watch.event("association_rejected", reason="draining")
        assert caller.store(made).status == 0
        caller.release()
    assert node.process.wait(15) == 0
    # Persisted before the end, or waiting in the spool for the next start.
    (kept,) = [*node.stored().values(), *node.spooled()]
    assert kept.read_bytes().endswith(made.data_set)


def test_an_abort_in_mid_association_is_taken_as_its_end(node: Node, watch: Watch) -> None:
    with Caller.tls(node) as caller:
        caller.associate(calling="FREE")
        # What a peer has said after its A-ABORT counts for nothing.
        caller.send(wire.encode_abort(0, 0), command(3, dimse.encode_echo_request(1)), wire.RELEASE_RQ)
        caller.expect_closed(1.0)
    watch.event("association_aborted_by_peer", calling_ae="FREE")
