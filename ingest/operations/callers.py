"""List callers with their certificates, and refusals with their causes."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ingest.acceptor.caller_tally import CALLERS, REFUSALS, TallyEntry, read_tallies
from ingest.acceptor.refusals import CallerRefusal
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import LedgerError
from ingest.ledger import Ledger
from ingest.ledger.callers import CallerCertificate
from ingest.operations.times import format_iso_time
from ingest.tls.observed_certificates import list_observed_callers

CALLER_FIELDS: Final = (
    *("calling_ae", "network", "subject", "issuer", "fingerprint", "not_after", "days_left"),
    *("associations", "refusals", "first_at", "last_at"),
)
REFUSAL_FIELDS: Final = (
    *("kind", "cause", "verify_code", "text", "remedy", "count", "first_at", "last_at"),
    "callers",
)
"""Fields of the lists in JSON and CSV; docs/reference/lists.md describes them."""

_DAY_MS: Final = 86_400_000

_Pair = tuple[str, str, str]
"""Calling AE title, network and fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller that associated: one AE title from one network with one certificate, or without any.

    Attributes:
        network: An IPv4 address, or an IPv6 /64; empty if only the ledger knows this caller.
        fingerprint, subject, issuer: The certificate; empty without one.
        not_after_ms: End of the certificate; 0 if it is not known.
        associations: Accepted associations that the listeners of this node counted.
        refusals: Refusals of the same AE title, network and certificate.
        first_ms, last_ms: First and last association, in Unix milliseconds.
    """

    calling_ae: str
    network: str = ""
    fingerprint: str = ""
    subject: str = ""
    issuer: str = ""
    not_after_ms: int = 0
    associations: int = 0
    refusals: int = 0
    first_ms: int = 0
    last_ms: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the caller for JSON."""
        left_ms = self.not_after_ms - unix_ms()
        return {
            "calling_ae": self.calling_ae,
            "network": self.network,
            "subject": self.subject,
            "issuer": self.issuer,
            "fingerprint": self.fingerprint,
            "not_after": format_iso_time(self.not_after_ms),
            "days_left": round(left_ms / _DAY_MS, 1) if self.not_after_ms else None,
            "associations": self.associations,
            "refusals": self.refusals,
            "first_at": format_iso_time(self.first_ms),
            "last_at": format_iso_time(self.last_ms),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCaller:
    """Refusals of one caller for one cause; times are Unix milliseconds.

    Attributes:
        network: An IPv4 address, or an IPv6 /64; empty for all that were too many to count apart.
        calling_ae, subject, fingerprint: As far as they were received. A refused certificate is not verified.
    """

    network: str
    calling_ae: str
    subject: str
    fingerprint: str
    count: int
    first_ms: int
    last_ms: int

    def to_json(self) -> dict[str, Any]:
        """Return the refusals for JSON."""
        return {
            "network": self.network,
            "calling_ae": self.calling_ae,
            "subject": self.subject,
            "fingerprint": self.fingerprint,
            "count": self.count,
            "first_at": format_iso_time(self.first_ms),
            "last_at": format_iso_time(self.last_ms),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalGroup:
    """Refusals of one cause, with the callers, the last one first."""

    refusal: CallerRefusal
    callers: Sequence[RefusedCaller] = field(default=())

    @property
    def count(self) -> int:
        """The number of refusals."""
        return sum(each.count for each in self.callers)

    @property
    def first_ms(self) -> int:
        """The time of the first refusal, in Unix milliseconds."""
        return min(each.first_ms for each in self.callers)

    @property
    def last_ms(self) -> int:
        """The time of the last refusal, in Unix milliseconds."""
        return max(each.last_ms for each in self.callers)

    def to_json(self) -> dict[str, Any]:
        """Return the group for JSON."""
        return {
            "kind": self.refusal.kind.value,
            "cause": self.refusal.cause,
            "verify_code": self.refusal.verify_code,
            "text": self.refusal.text,
            "remedy": self.refusal.remedy,
            "count": self.count,
            "first_at": format_iso_time(self.first_ms),
            "last_at": format_iso_time(self.last_ms),
            "callers": [each.to_json() for each in self.callers],
        }


def list_callers(config: Config) -> list[Caller]:
    """Return the callers of this node, the last one first. A ledger that is away adds nothing."""
    now = unix_ms()
    certificates = _find_certificates(config)
    found: dict[_Pair, Caller] = {}
    for entry in read_tallies(config.run_dir, CALLERS, now):
        found[_pair_of(entry)] = _make_caller(entry, certificates.get(entry.key.fingerprint))
    counted = {(ae, fingerprint) for ae, _, fingerprint in found}
    for certificate in certificates.values():
        for title, last_ms in certificate.titles.items():
            if (title, certificate.fingerprint) not in counted:
                caller = Caller(calling_ae=title, first_ms=certificate.first_at, last_ms=last_ms)
                found[title, "", certificate.fingerprint] = _add_certificate(caller, certificate)
    for entry in read_tallies(config.run_dir, REFUSALS, now):
        pair = _pair_of(entry)
        if pair in found:
            caller = found[pair]
            found[pair] = replace(caller, refusals=caller.refusals + entry.count)
    return sorted(found.values(), key=lambda each: (-each.last_ms, each.calling_ae, each.network))


def list_refusals(config: Config) -> list[RefusalGroup]:
    """Return refused callers grouped by cause, the cause of the last refusal first."""
    groups: dict[CallerRefusal, list[RefusedCaller]] = {}
    for entry in read_tallies(config.run_dir, REFUSALS, unix_ms()):
        key = entry.key
        if key.refusal is not None:
            groups.setdefault(key.refusal, []).append(
                RefusedCaller(
                    network=key.network,
                    calling_ae=key.calling_ae,
                    subject=entry.subject,
                    fingerprint=key.fingerprint,
                    count=entry.count,
                    first_ms=entry.first_ms,
                    last_ms=entry.last_ms,
                )
            )
    found = [RefusalGroup(refusal=refusal, callers=tuple(callers)) for refusal, callers in groups.items()]
    return sorted(found, key=lambda group: -group.last_ms)


def _pair_of(entry: TallyEntry) -> _Pair:
    return entry.key.calling_ae, entry.key.network, entry.key.fingerprint


def _make_caller(entry: TallyEntry, certificate: CallerCertificate | None) -> Caller:
    caller = Caller(
        calling_ae=entry.key.calling_ae,
        network=entry.key.network,
        fingerprint=entry.key.fingerprint,
        subject=entry.subject,
        associations=entry.count,
        first_ms=entry.first_ms,
        last_ms=entry.last_ms,
    )
    return _add_certificate(caller, certificate) if certificate else caller


def _add_certificate(caller: Caller, certificate: CallerCertificate) -> Caller:
    return replace(
        caller,
        fingerprint=certificate.fingerprint,
        subject=certificate.subject,
        issuer=certificate.issuer,
        not_after_ms=certificate.not_after,
    )


def _find_certificates(config: Config) -> dict[str, CallerCertificate]:
    """Return the certificates of the ledger and those that no worker has recorded yet."""
    known: Iterable[CallerCertificate] = ()
    with contextlib.suppress(LedgerError), contextlib.closing(Ledger(config.ledger_url)) as ledger:
        known = ledger.callers.list_certificates()
    found = {each.fingerprint: each for each in known}
    for each in list_observed_callers(config.run_dir):
        if each.fingerprint not in found or not found[each.fingerprint].not_after:
            found[each.fingerprint] = CallerCertificate(
                fingerprint=each.fingerprint,
                subject=each.subject,
                issuer=each.issuer,
                not_before=each.not_before_ms,
                not_after=each.not_after_ms,
                first_at=each.observed_ms,
                last_at=each.observed_ms,
                titles=found[each.fingerprint].titles if each.fingerprint in found else {},
            )
    return found
