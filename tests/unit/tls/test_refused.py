"""A certificate that is refused is told: whose it is, in both roles, whatever the reason."""

import hashlib
import os
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ingest.config.model import TLS
from ingest.ext.tls_connection import BufferedConnection
from ingest.requestor import failures
from ingest.tls.contexts import build_client_context, build_server_context
from ingest.tls.keys import pairs
from ingest.tls.rejection import REMEDIES, refused_certificate


class Place:
    """A node that trusts one authority, and certificates that it must refuse."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ours, stranger = (
            pairs.issue_authority("ours", key_type="ec"),
            pairs.issue_authority("stranger", key_type="ec"),
        )
        pairs.add_to_bundle(self.ours.certificate, folder / "trusted.crt")
        yesterday = datetime.now(UTC) - timedelta(days=3)
        self.write("node", pairs.issue_signed("node", self.ours, key_type="ec"))
        self.write("18", pairs.issue_self_signed("nobody", key_type="ec"))
        self.write("19", pairs.issue_signed("of a stranger", stranger, key_type="ec"), stranger)
        self.write("20", pairs.issue_signed("without its issuer", stranger, key_type="ec"))
        self.write("10", pairs.issue_signed("old", self.ours, key_type="ec", start=yesterday, days=1))
        for role, usage in (
            ("server", ExtendedKeyUsageOID.SERVER_AUTH),
            ("client", ExtendedKeyUsageOID.CLIENT_AUTH),
        ):
            self.write(
                f"26-{role}",
                self.signed_again(pairs.issue_signed(f"a {role}", self.ours, key_type="ec"), usage),
            )
        self.write(
            "odd",
            self.signed_again(pairs.issue_self_signed("odd", key_type="ec"), name="\x1b[2J" + "x" * 300),
        )

    def write(self, name: str, pair: pairs.Pair, *chain: pairs.Pair) -> None:
        text = pair.certificate_pem + b"".join(each.certificate_pem for each in chain)
        pairs.write_pair_files(self.folder / name, text, pair.encode_key(), force=False)

    def signed_again(
        self, pair: pairs.Pair, usage: x509.ObjectIdentifier | None = None, name: str = ""
    ) -> pairs.Pair:
        old = pair.certificate
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, name[at : at + 60])
                for at in range(0, len(name), 60)
            ]
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject if name else old.subject)
            .issuer_name(self.ours.certificate.subject if usage else old.issuer)
            .public_key(old.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(old.not_valid_before_utc)
            .not_valid_after(old.not_valid_after_utc)
        )
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        key = self.ours.private_key if usage else pair.private_key
        return pairs.Pair(builder.sign(key, hashes.SHA256()), pair.private_key)

    def tls(self, name: str, **changes: object) -> TLS:
        certificate, key = pairs.pair_paths(self.folder / name)
        trusted = (self.folder / "trusted.crt",)
        return TLS(certificate=certificate, private_key=key, trusted=trusted, **changes)  # type: ignore[arg-type]

    def der(self, name: str) -> bytes:
        """The certificate itself, without those of its issuers behind it."""
        text = pairs.pair_paths(self.folder / name)[0].read_text()
        end = "-----END CERTIFICATE-----"
        return ssl.PEM_cert_to_DER_cert(text[: text.index(end) + len(end)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def shake(ours: BufferedConnection, theirs: BufferedConnection) -> ssl.SSLCertVerificationError | None:
    """What our side says of the other's certificate."""
    try:
        for _ in range(6):
            for source, target in ((theirs, ours), (ours, theirs)):
                try:
                    source.shake_hands()
                except ssl.SSLError as error:
                    if source is ours:
                        raise
                    raise AssertionError(f"the other side failed first: {error}") from error
                target.feed(source.output())
    except ssl.SSLCertVerificationError as error:
        return error
    return None


def pair(place: Place, role: str, name: str) -> tuple[BufferedConnection, BufferedConnection]:
    """Ours in a role, and that of somebody with this certificate."""
    ours, theirs = place.tls("node"), place.tls(name, peer_certificate="none")
    if role == "server":
        contexts = build_server_context(ours), build_client_context(theirs)
    else:
        contexts = build_client_context(ours), build_server_context(theirs)
    return BufferedConnection(contexts[0]), BufferedConnection(contexts[1])


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("code", [10, 18, 19, 20, 26])
def test_a_refused_certificate_is_told_with_a_remedy(place: Place, role: str, code: int) -> None:
    name = f"26-{role}" if code == 26 else str(code)
    ours, theirs = pair(place, role, name)
    error = shake(ours, theirs)
    assert error is not None
    assert error.verify_code == code
    der = place.der(name)
    assert ours.refused_certificate() == der
    subject = x509.load_der_x509_certificate(der).subject.rfc4514_string()
    told = refused_certificate(ours)
    assert told == {"subject": subject, "fingerprint": hashlib.sha256(der).hexdigest()}
    said = failures.describe_error(error, in_handshake=True, refused=told)
    assert subject in said
    assert told["fingerprint"] in said
    assert REMEDIES[code] in said


def test_a_certificate_that_is_let_in_is_not_told_as_refused(place: Place) -> None:
    for role in ("server", "client"):
        ours, theirs = pair(place, role, "node")
        assert shake(ours, theirs) is None
        assert ours.established
        assert ours.verified_chain()
        assert refused_certificate(ours) == {}


def test_a_subject_that_its_holder_made_odd_is_cut_and_made_printable(place: Place) -> None:
    ours, theirs = pair(place, "server", "odd")
    assert shake(ours, theirs) is not None
    told = refused_certificate(ours)["subject"]
    assert len(told) <= 256
    assert told.isprintable()


def test_connections_in_many_threads_each_tell_their_own(place: Place) -> None:
    names = ("10", "18", "19", "20")
    wrong: list[str] = []

    def refuse(name: str) -> None:
        for _ in range(20):
            ours, theirs = pair(place, "server", name)
            shake(ours, theirs)
            if ours.refused_certificate() != place.der(name):
                wrong.append(name)

    running = [threading.Thread(target=refuse, args=(name,)) for name in names]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert wrong == []


def test_refused_certificates_go_with_their_connections(place: Place) -> None:
    context = build_server_context(place.tls("node"))
    other = build_client_context(place.tls("19", peer_certificate="none"))

    def resident_kib() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    def refuse(count: int) -> None:
        for _ in range(count):
            ours = BufferedConnection(context)
            shake(ours, BufferedConnection(other))
            assert ours.refused_certificate()

    refuse(50)
    before = resident_kib()
    refuse(600)
    # A certificate takes more than 3 KiB in memory.
    assert resident_kib() - before < 1200
