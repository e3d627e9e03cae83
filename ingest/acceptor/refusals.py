"""Refusals of callers: each cause with its text and its remedy."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ingest.dicom.admission import RejectionCause
from ingest.tls.rejection import REMEDIES

PLAIN_TO_TLS: Final = "the peer speaks plain DICOM to a TLS port: enable TLS there, or use a plain listener"
TLS_TO_PLAIN: Final = "the peer speaks TLS to a plain port: use a TLS listener, or disable TLS there"
NOT_A_BALANCER: Final = (
    "connect through the load balancer, or add the address to proxy_protocol of the listener"
)
NO_PROXY_HEADER: Final = (
    "let the load balancer send the PROXY protocol (HAProxy: send-proxy-v2, nginx: proxy_protocol on), or "
    "remove proxy_protocol of the listener"
)
TOO_MANY_FAILURES: Final = "fix the peer, or raise [receive] max_failures_per_minute"
TOO_MANY_NEWCOMERS: Final = "raise [receive] max_newcomers"

_PEERS: Final = "add or correct its [[peers]] entry, and run `ingest reload`"


class RefusalKind(StrEnum):
    """The step at which a caller was refused."""

    CONNECTION = "connection"
    TLS = "tls"
    ASSOCIATION = "association"


@dataclass(frozen=True, slots=True)
class CallerRefusal:
    """The reason of a refusal.

    Attributes:
        kind: The step.
        cause: Name of the cause: `RejectionCause` for associations, `TLS_CAUSE` of the metrics for TLS.
        verify_code: OpenSSL's verify code (x509_vfy.h) of a refused certificate; otherwise 0.
    """

    kind: RefusalKind
    cause: str
    verify_code: int = 0

    @property
    def text(self) -> str:
        """The cause for people."""
        return _find(self)[0]

    @property
    def remedy(self) -> str:
        """What a person can do."""
        return REMEDIES.get(self.verify_code) or _find(self)[1]


def refuse_connection(cause: str) -> CallerRefusal:
    """Return the refusal of a connection."""
    return CallerRefusal(RefusalKind.CONNECTION, cause)


def refuse_tls(cause: str, verify_code: int = 0) -> CallerRefusal:
    """Return the refusal of a handshake."""
    return CallerRefusal(RefusalKind.TLS, cause, verify_code)


def refuse_association(cause: str) -> CallerRefusal:
    """Return the refusal of an association."""
    return CallerRefusal(RefusalKind.ASSOCIATION, cause)


NO_CONTEXT_ACCEPTED: Final = "no_context_accepted"

_LOG: Final = "see the log of the node and of the peer"
_TEXTS: Final[dict[tuple[RefusalKind, str], tuple[str, str]]] = {
    (RefusalKind.CONNECTION, "failures"): ("too many failures of its address", TOO_MANY_FAILURES),
    (RefusalKind.CONNECTION, "newcomers"): (
        "too many connections without an association",
        TOO_MANY_NEWCOMERS,
    ),
    (RefusalKind.CONNECTION, "not_balancer"): ("it is no load balancer of the listener", NOT_A_BALANCER),
    (RefusalKind.CONNECTION, "proxy_missing"): ("the PROXY header is missing", NO_PROXY_HEADER),
    (RefusalKind.CONNECTION, "proxy_malformed"): ("the PROXY header is malformed", NO_PROXY_HEADER),
    (RefusalKind.CONNECTION, "proxy_deadline"): (
        "no PROXY header came in time ([receive] handshake_seconds)",
        NO_PROXY_HEADER,
    ),
    (RefusalKind.CONNECTION, "tls_to_plain"): ("TLS to a plain port", TLS_TO_PLAIN),
    (RefusalKind.CONNECTION, "protocol"): (
        "it broke the protocol of DICOM",
        "see `peer_broke_protocol` in the log; check that the peer speaks DICOM to this port",
    ),
    (RefusalKind.CONNECTION, "deadline"): (
        "it connected and asked for no association in time",
        "check what connects there: a port monitor, or a peer that hangs ([receive] artim_seconds)",
    ),
    (RefusalKind.TLS, "unknown_ca"): ("its certificate is not trusted", REMEDIES[20]),
    (RefusalKind.TLS, "expired"): ("its certificate has ended", REMEDIES[10]),
    (RefusalKind.TLS, "not_yet_valid"): ("its certificate is not valid yet", REMEDIES[9]),
    (RefusalKind.TLS, "revoked"): ("its certificate is revoked", REMEDIES[23]),
    (RefusalKind.TLS, "crl"): ("its certificate cannot be checked for revocation", REMEDIES[3]),
    (RefusalKind.TLS, "certificate"): (
        "its certificate cannot be used",
        "have its certificate replaced; `verify_message` in the log says why",
    ),
    (RefusalKind.TLS, "no_certificate"): (
        "it presented no certificate",
        'give the peer a certificate, or set peer_certificate = "optional" in [tls.NAME]',
    ),
    (RefusalKind.TLS, "unreadable_certificate"): (
        "its certificate cannot be read",
        "have its certificate issued again",
    ),
    (RefusalKind.TLS, "version"): (
        "it offers no TLS version that this node accepts",
        "update the peer, or see min_version of [tls.NAME]",
    ),
    (RefusalKind.TLS, "cipher"): (
        "it offers no cipher suite that this node accepts",
        "update the peer, or see profile and ciphers of [tls.NAME]",
    ),
    (RefusalKind.TLS, "alert"): (
        "it refused this node: it sent a TLS alert",
        "have the peer trust the certificate of this node (`ingest certs inspect`)",
    ),
    (RefusalKind.TLS, "not_tls"): ("it does not speak TLS", PLAIN_TO_TLS),
    (RefusalKind.TLS, "closed"): (
        "it closed the connection during the handshake",
        "see the log of the peer: it may not trust the certificate of this node",
    ),
    (RefusalKind.TLS, "deadline"): (
        "its handshake took too long",
        "check the network and the peer ([receive] handshake_seconds)",
    ),
    (RefusalKind.ASSOCIATION, RejectionCause.CALLING_AE): ("its AE title may not call", _PEERS),
    (RefusalKind.ASSOCIATION, RejectionCause.HOST): (
        "its AE title may not call from this address",
        f"correct `hosts`: {_PEERS}",
    ),
    (RefusalKind.ASSOCIATION, RejectionCause.CERTIFICATE): (
        "its AE title is bound to another certificate",
        f"correct `certificate` or `issuer` if the certificate is right: {_PEERS}",
    ),
    (RefusalKind.ASSOCIATION, RejectionCause.CALLED_AE): (
        "it called another AE title",
        "correct the called AE title at the peer, or [node] ae_title or [receive] check_called_ae",
    ),
    (RefusalKind.ASSOCIATION, RejectionCause.PROTOCOL_VERSION): ("it speaks another DICOM version", _LOG),
    (RefusalKind.ASSOCIATION, RejectionCause.APPLICATION_CONTEXT): (
        "its application context is not that of DICOM",
        _LOG,
    ),
    (RefusalKind.ASSOCIATION, RejectionCause.NO_CONTEXT): (
        "it proposed no presentation context",
        "nothing if it is a monitor; otherwise configure what the peer sends",
    ),
    (RefusalKind.ASSOCIATION, NO_CONTEXT_ACCEPTED): (
        "none of its presentation contexts was accepted",
        "see `allow` and `sop_classes` of its [[peers]] entry, and [receive] sop_classes and "
        "transfer_syntaxes",
    ),
    (RefusalKind.ASSOCIATION, RejectionCause.LIMIT): (
        "too many associations",
        "raise [receive] max_associations or max_associations_per_peer, or have the peer use fewer",
    ),
    (RefusalKind.ASSOCIATION, RejectionCause.FULL): (
        "spool, store or disk were full or away",
        "see `ingest status`",
    ),
    (RefusalKind.ASSOCIATION, RejectionCause.DRAINING): (
        "the node was stopping",
        "nothing: the peer tries again",
    ),
}


def _find(refusal: CallerRefusal) -> tuple[str, str]:
    return _TEXTS.get((refusal.kind, refusal.cause), ("another cause", _LOG))
