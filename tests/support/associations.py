"""Associations of our requestor with a peer on this host."""

from pathlib import Path

from ingest.config.model import TLS
from ingest.requestor.store_scu import Remote, StoreSCU, Timeouts
from tests.support.peers import AE_TITLE, CT, EXPLICIT, client_tls

SHORT = Timeouts(connect_seconds=2.0, response_seconds=1.0)


def remote_at(port: int, tls: TLS | None = None, calling_ae: str = "INGEST") -> Remote:
    return Remote("127.0.0.1", port, AE_TITLE, calling_ae, client_tls(tls) if tls else None)


def store_file(association: StoreSCU, path: Path | int, instance: str = "1.2.3", offset: int = 8) -> int:
    return association.store_instance(
        path, offset, None, sop_class=CT, sop_instance=instance, transfer_syntax=EXPLICIT
    ).status


def open_ct(port: int, tls: TLS | None = None, timeouts: Timeouts = SHORT, **options: object) -> StoreSCU:
    return StoreSCU.open(remote_at(port, tls), [(CT, [EXPLICIT])], timeouts=timeouts, **options)  # type: ignore[arg-type]
