"""Rules about optional parts of the installation: a section may need an extra that is not installed."""

from collections.abc import Collection, Iterator
from typing import Final

from ingest.codecs.available import MODULES, list_codecs
from ingest.config.faults import Fault
from ingest.config.model import Config
from ingest.dicom.transcoding import ENCODED, find_target
from ingest.extras import (
    explain_missing_extra,
    explain_missing_libpq,
    find_missing_modules,
    lacks_libpq,
)

LEDGER_ROLES: Final = frozenset({"persist", "forward", "retain", "monitor", "console"})
"""Roles that open the ledger. A host that only listens needs no driver for it."""

_SCHEMES: Final = ("postgresql", "postgresql+psycopg")
"""URLs of ledgers that the driver of the extra serves. Another driver is not ours to ask for."""


def check_extras(config: Config, roles: Collection[str]) -> Iterator[Fault]:
    """Yield a fault for each extra that the roles need with this configuration, and that is not installed."""
    if config.console is not None and "console" in roles:
        yield from _check_extra("console", "console", "or remove [console]")
    if "forward" in roles:
        for index, destination in enumerate(config.destinations):
            target = find_target(destination.preferred_transfer_syntax)
            if target in ENCODED and target not in list_codecs():
                cause, command = explain_missing_extra("transcode", MODULES[target])
                remedy = f"{command}, or name a transfer syntax without compression"
                yield Fault(f"destinations[{index}].preferred_transfer_syntax", cause, remedy)
    scheme = config.ledger_url.partition(":")[0]
    if scheme in _SCHEMES and not LEDGER_ROLES.isdisjoint(roles):
        yield from _check_extra("ledger.url", "postgresql", "or leave the key empty for SQLite")


def _check_extra(key: str, extra: str, alternative: str) -> Iterator[Fault]:
    if find_missing_modules(extra):
        cause, command = explain_missing_extra(extra)
    elif extra == "postgresql" and lacks_libpq():
        cause, command = explain_missing_libpq()
    else:
        return
    yield Fault(key, cause, f"{command}, {alternative}")
