"""Callers: the certificates that verified callers presented, and the AE titles that they used."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, bindparam, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.database import Database
from ingest.ledger.instances import CHUNK
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import caller_certificates, caller_titles

CERTIFICATES_MAX: Final = 4096
"""Certificates that the ledger keeps: those that were used last."""

TITLES_MAX: Final = 64
"""AE titles that the ledger keeps for one certificate. The holder of a certificate chooses its titles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerCertificate:
    """A certificate that a caller presented, and that was verified; times are Unix milliseconds.

    Attributes:
        fingerprint: SHA-256 of the certificate, 64 lower-case hexadecimal digits.
        subject, issuer: Distinguished names in the notation of RFC 4514.
        not_before, not_after: Begin and end of validity. Both are 0, and the issuer is empty, while only the
            subject is known.
        first_at, last_at: First and last association.
        titles: Calling AE titles of these associations, each with the time of the last one.
    """

    fingerprint: str
    subject: str
    issuer: str
    not_before: int
    not_after: int
    first_at: int
    last_at: int
    titles: dict[str, int] = field(default_factory=dict)


def _upsert(table: Any, key: Sequence[str]) -> dict[str, Any]:
    """Build an INSERT for both databases that widens the period of a row that exists."""
    statements = {}
    for dialect, module in (("sqlite", sqlite), ("postgresql", postgresql)):
        new = module.insert(table)
        first, last = new.excluded.first_at, new.excluded.last_at
        # A worker that only knows the File Meta has neither issuer nor dates.
        more = {
            name: case((new.excluded.not_after > 0, new.excluded[name]), else_=table.c[name])
            for name in ("issuer", "not_before", "not_after")
            if name in table.c
        }
        statements[dialect] = new.on_conflict_do_update(
            index_elements=list(key),
            set_={
                **more,
                "first_at": case((first < table.c.first_at, first), else_=table.c.first_at),
                "last_at": case((last > table.c.last_at, last), else_=table.c.last_at),
            },
        )
    return statements


_RECORD_CERTIFICATE: Final = _upsert(caller_certificates, ("fingerprint",))
_RECORD_TITLE: Final = _upsert(caller_titles, ("fingerprint", "calling_ae"))
_COUNT: Final = select(func.count()).select_from(caller_certificates)
_CROWDED: Final = (
    select(caller_titles.c.fingerprint)
    .where(caller_titles.c.fingerprint.in_(bindparam("of", expanding=True)))
    .group_by(caller_titles.c.fingerprint)
    .having(func.count() > TITLES_MAX)
)


class Callers:
    """Records and finds caller certificates.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, certificates: Sequence[CallerCertificate]) -> None:
        """Record certificates and titles. For known ones, only the time of the last use changes."""
        if not certificates:
            return
        rows = [
            {
                name: clean_value(getattr(each, name))
                for name in (
                    *("fingerprint", "subject", "issuer", "not_before", "not_after"),
                    *("first_at", "last_at"),
                )
            }
            for each in certificates
        ]
        titles = [
            {
                "fingerprint": each.fingerprint,
                "calling_ae": clean_value(title),
                "first_at": last_at,
                "last_at": last_at,
            }
            for each in certificates
            for title, last_at in each.titles.items()
        ]
        dialect = self._database.dialect
        with self._database.begin_write() as connection:
            # Several workers record the same rows. In one order, none waits for a row that waits for it.
            rows.sort(key=lambda row: str(row["fingerprint"]))
            titles.sort(key=lambda row: (str(row["fingerprint"]), str(row["calling_ae"])))
            connection.execute(_RECORD_CERTIFICATE[dialect], rows)
            if titles:
                connection.execute(_RECORD_TITLE[dialect], titles)
                _bound_titles(connection, {each.fingerprint for each in certificates})
            _bound_certificates(connection)

    def find_certificates(self, fingerprints: Collection[str]) -> dict[str, CallerCertificate]:
        """Return certificates by fingerprint; an unknown one is missing."""
        wanted = list(fingerprints)
        found: dict[str, CallerCertificate] = {}
        with self._database.begin_read() as connection:
            for start in range(0, len(wanted), CHUNK):
                found |= _read(connection, wanted[start : start + CHUNK])
        return found

    def list_certificates(self) -> list[CallerCertificate]:
        """Return all certificates, the last one that was used first."""
        with self._database.begin_read() as connection:
            found = _read(connection, None)
        return sorted(found.values(), key=lambda each: (-each.last_at, each.fingerprint))


def _read(connection: Connection, fingerprints: Sequence[str] | None) -> dict[str, CallerCertificate]:
    certificates, titles = select(caller_certificates), select(caller_titles)
    if fingerprints is not None:
        certificates = certificates.where(caller_certificates.c.fingerprint.in_(fingerprints))
        titles = titles.where(caller_titles.c.fingerprint.in_(fingerprints))
    found = {
        row["fingerprint"]: CallerCertificate(**row) for row in connection.execute(certificates).mappings()
    }
    for row in connection.execute(titles.order_by(caller_titles.c.calling_ae)):
        if row.fingerprint in found:
            found[row.fingerprint].titles[row.calling_ae] = row.last_at
    return found


def _bound_titles(connection: Connection, fingerprints: Collection[str]) -> None:
    for fingerprint in connection.execute(_CROWDED, {"of": list(fingerprints)}).scalars().all():
        of_this = caller_titles.c.fingerprint == fingerprint
        kept = (
            select(caller_titles.c.calling_ae)
            .where(of_this)
            .order_by(caller_titles.c.last_at.desc())
            .limit(TITLES_MAX)
        )
        connection.execute(delete(caller_titles).where(of_this, caller_titles.c.calling_ae.not_in(kept)))


def _bound_certificates(connection: Connection) -> None:
    if connection.execute(_COUNT).scalar_one() <= CERTIFICATES_MAX:
        return
    kept = (
        select(caller_certificates.c.fingerprint)
        .order_by(caller_certificates.c.last_at.desc())
        .limit(CERTIFICATES_MAX)
    )
    for table in (caller_titles, caller_certificates):
        connection.execute(delete(table).where(table.c.fingerprint.not_in(kept)))
