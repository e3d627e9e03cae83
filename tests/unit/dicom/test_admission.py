"""Who is let in."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from ingest.config.model import PeerSettings
from ingest.dicom import admission
from ingest.dicom.admission import Admission, Refusal
from ingest.dicom.wire import CALLING_AE_NOT_RECOGNIZED
from ingest.tls.identity import CertificateIdentity, TrustAnchor, find_binding_fault

CT1 = CertificateIdentity(
    fingerprint="ab" * 32,
    subject="CN=ct1,O=Hospital",
    issuer="CN=Hospital CA",
    names=("DNS:ct1.example.org",),
    not_after=datetime(2040, 1, 1, tzinfo=UTC),
    trust_anchor=TrustAnchor("cd" * 32, "CN=Hospital CA", is_authority=True),
    intermediates=("ef" * 32,),
)


@dataclass(frozen=True)
class Caller:
    ae_title: str
    address: str
    certificate: CertificateIdentity | None = None


def admit(
    caller: Caller, peers: tuple[PeerSettings, ...], *, ignore_case: bool = False
) -> Admission | Refusal:
    def find_peer_fault(peer: admission.PeerRule) -> str | None:
        title = f"AE title {caller.ae_title!r}"
        return find_binding_fault(caller.certificate, peer.certificate, peer.issuer, title)

    return admission.admit(caller.ae_title, caller.address, peers, find_peer_fault, ignore_case=ignore_case)


def refused(caller: Caller, *peers: PeerSettings) -> str:
    answer = admit(caller, peers)
    assert isinstance(answer, Refusal)
    assert answer.pdu == CALLING_AE_NOT_RECOGNIZED
    return answer.reason


def test_without_peers_every_caller_may_do_everything() -> None:
    assert admit(Caller("ANY", "10.0.0.1"), ()) == Admission(frozenset({"echo", "store"}))


def test_an_empty_calling_ae_title_is_nobody() -> None:
    assert "10.0.0.1" in refused(Caller("", "10.0.0.1"))


def test_with_peers_only_their_ae_titles_are_let_in() -> None:
    peers = (PeerSettings(ae_title="CT1"), PeerSettings(ae_title="MR1", allow=("echo",)))
    assert admit(Caller("CT1", "10.0.0.1"), peers) == Admission(frozenset({"echo", "store"}))
    assert admit(Caller("MR1", "10.0.0.1"), peers) == Admission(frozenset({"echo"}))
    why = refused(Caller("ct1", "10.0.0.1"), *peers)
    assert "'ct1'" in why
    assert "10.0.0.1" in why


def test_spaces_around_a_configured_title_do_not_count() -> None:
    assert isinstance(admit(Caller("CT1", "10.0.0.1"), (PeerSettings(ae_title=" CT1 "),)), Admission)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "fe80::1%eth0"])
def test_addresses_within_a_network_are_let_in(address: str) -> None:
    peer = PeerSettings(ae_title="CT1", hosts=("10.1.0.0/16", "2001:db8::/32", "fe80::1"))
    assert isinstance(admit(Caller("CT1", address), (peer,)), Admission)


def test_a_network_of_mapped_addresses_is_that_of_ipv4() -> None:
    peer = PeerSettings(ae_title="CT1", hosts=("::ffff:10.1.0.0/112",))
    for address in ("10.1.2.3", "::ffff:10.1.2.3"):
        assert isinstance(admit(Caller("CT1", address), (peer,)), Admission)
    assert "from 10.2.0.1" in refused(Caller("CT1", "10.2.0.1"), peer)


@pytest.mark.parametrize("address", ["10.2.0.1", "::1", "2001:db9::1", "", "nonsense"])
def test_other_addresses_are_refused_and_named(address: str) -> None:
    peer = PeerSettings(ae_title="CT1", hosts=("10.1.0.0/16", "2001:db8::/32", "not-an-address"))
    why = refused(Caller("CT1", address), peer)
    assert f"from {address}," in why
    assert "10.1.0.0/16" in why


def test_a_bound_title_needs_its_certificate() -> None:
    bound = PeerSettings(ae_title="CT1", certificate="DNS:ct1.example.org")
    assert isinstance(admit(Caller("CT1", "10.0.0.1", CT1), (bound,)), Admission)
    assert "none was presented" in refused(Caller("CT1", "10.0.0.1"), bound)


def test_refusal_of_another_certificate_names_subject_title_and_binding() -> None:
    why = refused(Caller("MR1", "10.0.0.1", CT1), PeerSettings(ae_title="MR1", certificate="mr1.example.org"))
    assert CT1.subject in why
    assert "MR1" in why
    assert "mr1.example.org" in why


def test_of_several_entries_for_a_title_the_first_that_fits_decides() -> None:
    peers = (
        PeerSettings(ae_title="CT1", hosts=("10.0.0.0/8",), allow=("echo",)),
        PeerSettings(ae_title="CT1", hosts=("192.168.0.0/16",)),
    )
    assert admit(Caller("CT1", "10.0.0.1"), peers) == Admission(frozenset({"echo"}))
    assert admit(Caller("CT1", "192.168.0.1"), peers) == Admission(frozenset({"echo", "store"}))
    assert "; " in refused(Caller("CT1", "172.16.0.1"), *peers)


def test_issuer_is_bound_alone_or_with_the_certificate() -> None:
    site = PeerSettings(ae_title="CT1", issuer="CN=Hospital CA")
    assert isinstance(admit(Caller("CT1", "10.0.0.1", CT1), (site,)), Admission)
    other = PeerSettings(ae_title="CT1", certificate="DNS:ct1.example.org", issuer="CN=Hospital CA 2")
    why = refused(Caller("CT1", "10.0.0.1", CT1), other)
    assert "'CN=ct1,O=Hospital' of 'CN=Hospital CA'" in why
    assert "'DNS:ct1.example.org' of 'CN=Hospital CA 2'" in why
    assert "none was presented" in refused(Caller("CT1", "10.0.0.1"), site)


SELF_SIGNED = TrustAnchor("cd" * 32, "CN=scanner", is_authority=False)


@pytest.mark.parametrize(
    ("anchor", "certificate", "issuer", "admitted"),
    [
        (CT1.trust_anchor, "CN=ct1,O=Hospital", "", True),
        (SELF_SIGNED, "CN=ct1,O=Hospital", "", False),
        (SELF_SIGNED, "DNS:ct1.example.org", "", False),
        (None, "CN=ct1,O=Hospital", "", False),
        (SELF_SIGNED, "AB" * 32, "", True),
        (SELF_SIGNED, "CN=ct1,O=Hospital", "CN=scanner", True),
        (SELF_SIGNED, "CN=ct1,O=Hospital", "CN=Hospital CA", False),
        (TrustAnchor(CT1.fingerprint, CT1.subject, is_authority=False), "CN=ct1,O=Hospital", "", True),
        (CT1.trust_anchor, "", "ef" * 32, True),
        (CT1.trust_anchor, "", "cd" * 32, True),
        (CT1.trust_anchor, "", "ab" * 32, False),
        (None, "", "CN=Hospital CA", False),
    ],
)
def test_names_are_worth_what_the_trusted_certificate_behind_them_is(
    anchor: TrustAnchor | None, certificate: str, issuer: str, admitted: bool
) -> None:
    caller = Caller("CT1", "10.0.0.1", replace(CT1, trust_anchor=anchor))
    answer = admit(caller, (PeerSettings(ae_title="CT1", certificate=certificate, issuer=issuer),))
    assert isinstance(answer, Admission) is admitted


def test_refusal_of_a_name_that_nobody_vouches_for_tells_cause_and_remedy() -> None:
    caller = Caller("CT1", "10.0.0.1", replace(CT1, trust_anchor=SELF_SIGNED))
    why = refused(caller, PeerSettings(ae_title="CT1", certificate="CN=ct1,O=Hospital"))
    assert "'CN=ct1,O=Hospital' of 'CN=scanner'" in why
    assert "is not marked as an authority" in why
    assert "name it in `issuer`, or bind by fingerprint" in why


def test_sop_classes_come_with_the_admission() -> None:
    peer = PeerSettings(ae_title="CT1", sop_classes=("CT*",))
    assert admit(Caller("CT1", "10.0.0.1"), (peer,)) == Admission(frozenset({"echo", "store"}), ("CT*",))


def test_a_star_stands_for_titles_without_an_entry_and_for_no_others() -> None:
    peers = (
        PeerSettings(ae_title="*", allow=("echo",)),
        PeerSettings(ae_title="CT1", certificate="DNS:ct1.example.org"),
    )
    assert admit(Caller("ANY", "10.0.0.1"), peers) == Admission(frozenset({"echo"}))
    assert "none was presented" in refused(Caller("CT1", "10.0.0.1"), *peers)


@pytest.mark.parametrize(
    ("title", "hosts", "bound"),
    [("ct1", (), "CT1"), ("ANY", (), "*"), ("ct1", ("10.0.0.1",), ""), ("MR1", (), "")],
)
def test_an_admission_tells_the_bound_entry_that_it_comes_from(
    title: str, hosts: tuple[str, ...], bound: str
) -> None:
    first = (
        PeerSettings(ae_title="CT1", hosts=hosts)
        if hosts
        else PeerSettings(ae_title="CT1", issuer="CN=Hospital CA")
    )
    peers = (first, PeerSettings(ae_title="MR1"), PeerSettings(ae_title="*", certificate="CN=ct1,O=Hospital"))
    answer = admit(Caller(title, "10.0.0.1", CT1), peers, ignore_case=True)
    assert isinstance(answer, Admission)
    assert answer.bound_ae_title == bound


def test_a_star_does_not_let_in_a_bound_title_in_other_capitals() -> None:
    peers = (
        PeerSettings(ae_title="CT1", issuer="CN=Hospital CA"),
        PeerSettings(ae_title="MR1"),
        PeerSettings(ae_title="*"),
    )
    assert "differs in capitals only from 'CT1'" in refused(Caller("ct1", "10.0.0.1", CT1), *peers)
    assert isinstance(admit(Caller("mr1", "10.0.0.1"), peers), Admission)


@pytest.mark.parametrize("title", ["ANY", "*"])
def test_a_star_that_allows_nothing_refuses_whatever_follows_it(title: str) -> None:
    peers = (
        PeerSettings(ae_title="*", hosts=("10.0.0.0/8",), allow=()),
        PeerSettings(ae_title="*"),
        PeerSettings(ae_title="CT1", allow=()),
    )
    assert "is not among [[peers]]" in refused(Caller(title, "10.0.0.1"), *peers)
    assert isinstance(admit(Caller(title, "192.168.0.1"), peers), Admission)
    assert admit(Caller("CT1", "10.0.0.1"), peers) == Admission(frozenset())


def test_capitals_count_unless_they_are_to_be_ignored() -> None:
    peers = (PeerSettings(ae_title="CT1"),)
    assert isinstance(admit(Caller("ct1", "10.0.0.1"), peers, ignore_case=True), Admission)
    assert isinstance(admit(Caller("ct2", "10.0.0.1"), peers, ignore_case=True), Refusal)
