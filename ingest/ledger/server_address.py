"""The name of the PostgreSQL server, looked up within the deadline of the connection.

Neither libpq nor psycopg has a deadline for that: `connect_timeout` begins once there is an address. A dead
name server would hold a worker, its leases and its place for as long as getaddrinfo(3) takes. The addresses
are given beside the names (`hostaddr`), by which certificates are still checked.
"""

from typing import Any, Final

import sqlalchemy
from sqlalchemy import Engine, event

from ingest.network.resolver import RESOLVER

LOOKUP_SECONDS: Final = 10.0
"""Where the URL and we have no connect_timeout."""

PORT: Final = 5432


def resolve_hosts(engine: Engine) -> None:
    """Have an engine for PostgreSQL look names up by `ingest.network.resolver`; any other is left alone."""
    if engine.dialect.name == "postgresql" and engine.dialect.driver == "psycopg":
        event.listen(engine, "do_connect", _add_addresses)


def _add_addresses(
    dialect: sqlalchemy.Dialect, _record: object, _args: list[Any], parameters: dict[str, Any]
) -> None:
    """Put `hostaddr` beside `host`, one for each address; parameters are libpq's.

    Raises an OperationalError of the driver where no name has an address.
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
