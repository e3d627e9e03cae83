"""Names of Redis and PostgreSQL go through the resolver, and by them they are still connected to."""

import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import sqlalchemy
from sqlalchemy import event

from ingest.ledger.server_address import resolve_hosts
from ingest.queue import client
from tests.support.pki import Material


class CapturedError(Exception):
    """Holds what libpq would be given."""


def parameters(url: str, **more: object) -> dict[str, Any]:
    """What an engine for `url` would connect with."""
    engine = sqlalchemy.create_engine(url, connect_args=more)
    resolve_hosts(engine)

    @event.listens_for(engine, "do_connect")
    def capture(_dialect: object, _record: object, _args: object, found: dict[str, Any]) -> None:
        raise CapturedError(found)

    with pytest.raises(CapturedError) as raised:
        engine.connect()
    captured: dict[str, Any] = raised.value.args[0]
    return captured


def addresses() -> list[str]:
    return [str(each[4][0]) for each in socket.getaddrinfo("localhost", 5432, type=socket.SOCK_STREAM)]


def test_addresses_stand_beside_the_name_of_the_ledger_s_server() -> None:
    found = parameters("postgresql+psycopg://u@localhost/d", connect_timeout=5)
    assert found["hostaddr"].split(",") == addresses()
    assert set(found["host"].split(",")) == {"localhost"}
    assert len(found["host"].split(",")) == len(found["port"].split(",")) == len(addresses())


def test_each_of_several_servers_has_its_port_and_one_without_address_is_left_out() -> None:
    found = parameters("postgresql+psycopg:///d?host=127.0.0.1:1&host=a..b:2&host=127.0.0.2:3")
    assert (found["host"], found["hostaddr"], found["port"]) == (
        "127.0.0.1,127.0.0.2",
        "127.0.0.1,127.0.0.2",
        "1,3",
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg:///d?host=/run/postgresql",
        "postgresql+psycopg:///d",
        "postgresql+psycopg://u@name/d?hostaddr=127.0.0.9",
    ],
)
def test_sockets_and_given_addresses_are_left_as_they_are(url: str) -> None:
    assert parameters(url).get("hostaddr") in {None, "127.0.0.9"}


def test_a_server_without_an_address_is_a_ledger_that_is_away() -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://u@a..b/d")
    resolve_hosts(engine)
    with pytest.raises(sqlalchemy.exc.OperationalError, match=r"a\.\.b cannot be resolved"):
        engine.connect()


@pytest.fixture
def pong() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def serve(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """One connection on which each command gets a PONG."""

    def run() -> None:
        sock, _ = listener.accept()
        with context.wrap_socket(sock, server_side=True) if context else sock as connected:
            while connected.recv(4096):
                connected.sendall(b"+PONG\r\n")

    threading.Thread(target=run, daemon=True).start()


@pytest.mark.parametrize("encrypted", [False, True])
def test_redis_is_reached_by_its_name(pong: socket.socket, material: Material, encrypted: bool) -> None:
    context = None
    if encrypted:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(material.certificate("node"), material.key("node"))
    serve(pong, context)
    port = pong.getsockname()[1]
    url = f"redis://localhost:{port}?protocol=2&lib_name=&lib_version="
    if encrypted:
        url = f"{url.replace('redis:', 'rediss:')}&ssl_ca_certs={material.trusted}"
    connection = client.connect_to_url(url, timeout=5)
    assert connection.ping()
    assert connection.connection_pool.connection_kwargs["socket_connect_timeout"] == 5
    connection.close()


def test_a_redis_without_an_address_is_away() -> None:
    with pytest.raises(redis.ConnectionError):
        client.connect_to_url("redis://a..b:6379", timeout=5).ping()
