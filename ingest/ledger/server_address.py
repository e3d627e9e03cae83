"""Lookup of the PostgreSQL server's name, with the deadline of the connection (INVARIANT 7).

Neither libpq nor psycopg limits the lookup: `connect_timeout` begins when there is an address. A dead name
server
would block a worker, its leases and its destination slot as long as getaddrinfo(3) takes. The addresses are
passed
in `hostaddr` beside the names, so certificates are still checked against the names.
"""

from typing import Any, Final

import sqlalchemy
from sqlalchemy import Engine, event

from ingest.network.resolver import RESOLVER

LOOKUP_SECONDS: Final = 10.0
"""Deadline of the lookup if there is no `connect_timeout`."""

PORT: Final = 5432


def resolve_hosts(engine: Engine) -> None:
    """Let an engine for PostgreSQL look names up with `ingest.network.resolver`; leave others alone."""
    if engine.dialect.name == "postgresql" and engine.dialect.driver == "psycopg":
        event.listen(engine, "do_connect", _add_addresses)


def _add_addresses(
    dialect: sqlalchemy.Dialect, _record: object, _args: list[Any], parameters: dict[str, Any]
) -> None:
    """Add `hostaddr` beside `host` to the parameters of libpq, one for each address.

    Raises an OperationalError of the driver if no name has an address.
    """
    hosts = str(parameters.get("host") or "").split(",")
    ports = str(parameters.get("port") or PORT).split(",")
    if "hostaddr" in parameters or any(not host or host.startswith(("/", "@")) for host in hosts):
        return  # addresses already, or Unix sockets
    ports = ports * len(hosts) if len(ports) == 1 else ports
    seconds = float(parameters.get("connect_timeout") or LOOKUP_SECONDS)
    found: list[tuple[str, str, str]] = []
    failure: OSError | None = None
    for host, port in zip(hosts, ports, strict=False):
        try:
            addresses = RESOLVER.resolve(host, int(port or PORT), seconds)
        except OSError as error:
            failure = error
        else:
            found += [(host, str(each[4][0]), port) for each in addresses]
    if not found:
        driver: Any = dialect.loaded_dbapi
        raise driver.OperationalError(f"the name {','.join(hosts)} cannot be resolved: {failure}")
    parameters["host"], parameters["hostaddr"], parameters["port"] = (
        ",".join(column) for column in zip(*found, strict=True)
    )
