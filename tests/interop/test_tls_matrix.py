"""Who is let in: programs, certificates, TLS versions and keys against what the node asks for.

A covering set of the product: every two values meet in a cell, and each certificate meets each
`peer_certificate` in both versions of TLS. Orthanc without a certificate is left out: it has TLS with one.
"""

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from ingest.tls.keys import pairs
from tests.interop.callers import CALLERS, Call, orthanc
from tests.interop.files import write_made
from tests.interop.orthanc import Orthanc
from tests.interop.orthanc import orthanc as run_orthanc
from tests.support.nodes import Node, cleaned, eventually
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.revoking import revocation_list

# caller, peer_certificate, the caller's certificate, TLS version, the caller's key, the node's key
CELLS = """
Orthanc    required trusted     1.2 RSA RSA
echoscu    required trusted     1.3 RSA EC
s_client   optional trusted     1.2 EC  RSA
storescu   optional trusted     1.3 RSA RSA
dcmjs      none     trusted     1.2 EC  RSA
pynetdicom none     trusted     1.3 RSA RSA
echoscu    required chain       1.2 RSA RSA
storescu   required chain       1.3 RSA RSA
Orthanc    optional chain       1.2 EC  RSA
dcmjs      optional chain       1.3 RSA RSA
pynetdicom none     chain       1.2 EC  EC
s_client   none     chain       1.3 EC  EC
storescu   required untrusted   1.2 EC  RSA
s_client   required untrusted   1.3 RSA EC
echoscu    optional untrusted   1.2 EC  RSA
dcmjs      optional untrusted   1.3 EC  EC
Orthanc    none     untrusted   1.2 EC  RSA
pynetdicom none     untrusted   1.3 RSA EC
storescu   required self-signed 1.2 EC  EC
s_client   required self-signed 1.3 EC  EC
echoscu    optional self-signed 1.2 RSA RSA
pynetdicom optional self-signed 1.3 RSA RSA
dcmjs      none     self-signed 1.2 RSA EC
Orthanc    none     self-signed 1.3 RSA EC
Orthanc    required expired     1.2 RSA RSA
dcmjs      required expired     1.3 RSA EC
s_client   optional expired     1.2 EC  RSA
echoscu    optional expired     1.3 EC  EC
pynetdicom none     expired     1.2 EC  RSA
storescu   none     expired     1.3 RSA RSA
dcmjs      required early       1.2 EC  EC
pynetdicom required early       1.3 RSA RSA
storescu   optional early       1.2 EC  EC
s_client   optional early       1.3 EC  EC
echoscu    none     early       1.2 RSA EC
Orthanc    none     early       1.3 RSA RSA
pynetdicom required revoked     1.2 EC  RSA
dcmjs      required revoked     1.3 RSA RSA
Orthanc    optional revoked     1.2 RSA RSA
s_client   optional revoked     1.3 RSA EC
echoscu    none     revoked     1.2 EC  EC
storescu   none     revoked     1.3 RSA EC
Orthanc    required usage       1.2 RSA RSA
storescu   required usage       1.3 EC  RSA
echoscu    optional usage       1.2 EC  EC
pynetdicom optional usage       1.3 EC  EC
s_client   none     usage       1.2 EC  EC
dcmjs      none     usage       1.3 EC  RSA
pynetdicom required none        1.2 RSA EC
dcmjs      required none        1.3 EC  RSA
pynetdicom optional none        1.2 RSA RSA
storescu   optional none        1.3 EC  EC
s_client   none     none        1.2 RSA EC
echoscu    none     none        1.3 EC  RSA
"""

NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
REFUSALS = {
    # OpenSSL's verify code (x509_vfy.h) that the log has, and the alert (RFC 8446 6.2) that the caller gets.
    "untrusted": (19, 48),
    "self-signed": (18, 48),
    "expired": (10, 45),
    "early": (9, 42),
    "revoked": (23, 44),
    "usage": (26, 43),
}
ALERT, APPLICATION_DATA = 21, 23
SEALED_ALERT = 2 + 1 + 16
"""Bytes of an alert in TLS 1.3: it, its content type and the tag of AES-GCM (RFC 8446 5.2)."""


class Cell(NamedTuple):
    caller: str
    mode: str
    certificate: str
    version: str
    key: str
    node_key: str

    @property
    def let_in(self) -> bool:
        if self.mode == "none" or self.certificate in {"trusted", "chain"}:
            return True
        return self.mode == "optional" and self.certificate == "none"

    @property
    def listener(self) -> str:
        """Orthanc's version cannot be set, so that a listener without TLS 1.3 makes it take 1.2."""
        limited = self.caller == "Orthanc" and self.version == "1.2"
        return f"{self.mode}-{self.node_key}{'-old' if limited else ''}"


TABLE = [Cell(*line.split()) for line in CELLS.strip().splitlines()]


def test_cells_cover_the_matrix() -> None:
    values = {name: {getattr(cell, name) for cell in TABLE} for name in Cell._fields}
    assert {name: len(found) for name, found in values.items()} == {
        "caller": 6, "mode": 3, "certificate": 9, "version": 2, "key": 2, "node_key": 2,
    }  # fmt: skip
    for these in [*itertools.combinations(Cell._fields, 2), ("certificate", "mode", "version")]:
        met = {tuple(getattr(cell, name) for name in these) for cell in TABLE}
        missing = set(itertools.product(*(values[name] for name in these))) - met
        assert missing <= {("Orthanc", "none")}, these


class Site(Material):
    """A root and an authority under it, both with lists of who is revoked, and pairs of each kind and key."""

    def build(self) -> None:
        now, day = datetime.now(UTC), timedelta(days=1)
        keys = {"RSA": "rsa2048", "EC": "ec"}
        root = self._authority("root", None)
        authority = self._authority("authority", root)
        stranger = self._authority("stranger", None)
        revoked = []
        pairs.add_to_bundle(root.certificate, self.trusted)
        for name, kind in keys.items():
            for who in ("node", "trusted", "self-signed"):
                pair = pairs.issue_self_signed(
                    f"{who} {name}", names=["localhost", "127.0.0.1"], key_type=kind
                )
                pairs.write_pair(pair, self.folder / f"{who}-{name}")
                if who != "self-signed":
                    pairs.add_to_bundle(pair.certificate, self.trusted)
            for who, issuer, options in (
                ("chain", authority, {}),
                ("revoked", authority, {}),
                ("untrusted", stranger, {}),
                ("expired", authority, {"start": now - 3 * day, "days": 1}),
                ("early", authority, {"start": now + day, "days": 3}),
            ):
                pair = pairs.issue_signed(f"{who} {name}", issuer, key_type=kind, **options)
                self._write(f"{who}-{name}", pair, issuer)
                revoked += [pair.certificate] if who == "revoked" else []
            self._write(f"usage-{name}", self._for_servers_only(kind, authority), authority)
        lists = (revocation_list(root), revocation_list(authority, *revoked))
        (self.folder / "lists").write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in lists))

    def whose(self, name: str) -> tuple[str, str]:
        """Subject and fingerprint of a certificate."""
        certificate = x509.load_pem_x509_certificate((self.folder / f"{name}.crt").read_bytes())
        return certificate.subject.rfc4514_string(), certificate.fingerprint(hashes.SHA256()).hex()

    def _authority(self, name: str, issuer: pairs.Pair | None) -> pairs.Pair:
        """As `pki.authority`, which makes none that have others under them."""
        own = pairs.issue_authority(name, key_type="ec")
        above = issuer or own
        builder = _again(own.certificate, above.certificate.subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return pairs.Pair(builder.sign(above.private_key, hashes.SHA256()), own.private_key)

    def _for_servers_only(self, kind: str, issuer: pairs.Pair) -> pairs.Pair:
        pair = pairs.issue_signed("for servers", issuer, key_type=kind)
        builder = _again(pair.certificate, issuer.certificate.subject)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        return pairs.Pair(builder.sign(issuer.private_key, hashes.SHA256()), pair.private_key)

    def _write(self, name: str, pair: pairs.Pair, issuer: pairs.Pair) -> None:
        pairs.write_pair_files(
            self.folder / name, pair.certificate_pem + issuer.certificate_pem, pair.encode_key(), force=False
        )


def _again(certificate: x509.Certificate, issuer: x509.Name) -> x509.CertificateBuilder:
    """The same subject, key and time, without any extension."""
    return (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(issuer)
        .public_key(certificate.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )


class Place:
    """The node with all its listeners, and the one Orthanc that runs at a time."""

    def __init__(self, folder: Path) -> None:
        (folder / "pki").mkdir()
        self.site = Site(folder / "pki")
        self.site.build()
        self.node = Node(folder / "node", self.site)
        [self.file] = write_made(folder / "made", 1)
        modes = ("required", "optional", "none")
        self.ports = {
            f"{mode}-{key}{old}": free_port()
            for mode in modes
            for key in ("RSA", "EC")
            for old in ("", "-old")
        }
        self._orthanc: tuple[str, Orthanc] | None = None
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        listeners, tls = "", ""
        for name, port in self.ports.items():
            mode, key, *old = name.split("-")
            listeners += f'[[listeners]]\nhost = "127.0.0.1"\nport = {port}\ntls = "{name}"\n'
            tls += (
                f'[tls.{name}]\ncertificate = "{self.site.certificate(f"node-{key}")}"\n'
                f'private_key = "{self.site.key(f"node-{key}")}"\ntrusted = ["{self.site.trusted}"]\n'
                f'peer_certificate = "{mode}"\n'
                + (f'crl = ["{self.site.folder / "lists"}"]\n' if mode != "none" else "")
                + ('profile = "bcp195-ex"\n' if old else "")
            )
        receive = "[receive]\nprocesses = 1\nmin_free_bytes = 0\nmax_failures_per_minute = 0"
        self.node.start(listeners=listeners, tls=tls, receive=receive)

    def orthanc(self, name: str) -> Orthanc:
        """The one that runs with this pair; another one is ended for it."""
        if self._orthanc is None or self._orthanc[0] != name:
            self._running.close()
            server = self._running.enter_context(run_orthanc(self.site, name, DicomScuTimeout=20))
            self._orthanc = (name, server)
        return self._orthanc[1]

    def close(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("matrix"))
    with cleaned(place.node), contextlib.closing(place):
        place.start()
        yield place


class Relay:
    """Between a caller and the node; keeps what the node sent, as it was on the wire."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.sent = bytearray()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            caller, _ = self._listening.accept()
            node = socket.create_connection(("127.0.0.1", self._to))
            back = threading.Thread(target=self._pass, args=(node, caller, self.sent))
            back.start()
            self._pass(caller, node, None)
            back.join()
            caller.close()
            node.close()

    def _pass(self, source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if kept is not None:
                    kept += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def records(self) -> list[tuple[int, bytes]]:
        """Content type and content of each TLS record, once all is over."""
        # What waits in accept() is woken by this only, not by a close.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads[0].join(30)
        found, stream = [], bytes(self.sent)
        while len(stream) >= 5:
            kind, _, length = struct.unpack(">BHH", stream[:5])
            found.append((kind, stream[5 : 5 + length]))
            stream = stream[5 + length :]
        return found


@pytest.mark.parametrize("cell", TABLE, ids="-".join)
def test_caller_is_let_in_or_refused_with_an_alert_and_the_cause_in_the_log(place: Place, cell: Cell) -> None:
    accepted, refused = (
        len(place.node.events(event)) for event in ("association_accepted", "tls_handshake_failed")
    )
    name = "" if cell.certificate == "none" else f"{cell.certificate}-{cell.key}"
    relay = Relay(place.ports[cell.listener])
    call = Call(place.site, name, cell.version, relay.port, place.file)
    try:
        came = orthanc(place.orthanc(name), call) if cell.caller == "Orthanc" else CALLERS[cell.caller](call)
    finally:
        records = relay.records()

    assert came.let_in == cell.let_in, came.said
    if cell.let_in:
        [event] = eventually(lambda: place.node.events("association_accepted")[accepted:])
        assert event["tls"] == f"TLSv{cell.version}"
        assert bool(event.get("subject")) == (cell.mode != "none" and bool(name))
        return
    [event] = eventually(lambda: place.node.events("tls_handshake_failed")[refused:])
    if name:
        code, alert = REFUSALS[cell.certificate]
        assert event["verify_code"] == code
        assert event["verify_message"]
        assert (event["subject"], event["fingerprint"]) == place.site.whose(name)
        assert event["remedy"]
    else:
        alert = {"1.2": 40, "1.3": 116}[cell.version]
        assert event["error"] == NO_CERTIFICATE
    if cell.version == "1.2":
        assert (ALERT, bytes((2, alert))) in records
    else:
        assert (records[-1][0], len(records[-1][1])) == (APPLICATION_DATA, SEALED_ALERT)
    if cell.caller in {"s_client", "dcmjs"}:  # who name the number, in TLS 1.3 too
        assert f"SSL alert number {alert}" in came.said
    assert len(place.node.events("association_accepted")) == accepted
