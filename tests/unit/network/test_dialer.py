"""TCP connections to a name with several addresses, of which some fail, refuse or drop packets."""

import os
import socket
import time
from collections.abc import Iterator

import pytest

from ingest.network.dialer import dial_host
from ingest.network.resolver import Address, Resolver
from tests.support.ports import free_port
from tests.unit.network.addresses import address


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def full(stack: list[socket.socket]) -> int:
    """A port whose queue of connections is full: packets to it are dropped."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    stack.append(listener)
    port = int(listener.getsockname()[1])
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
        stack.append(filler)
    return port


@pytest.fixture
def dead_port() -> Iterator[int]:
    stack: list[socket.socket] = []
    yield full(stack)
    for each in stack:
        each.close()


def took(started: float) -> float:
    return time.monotonic() - started


def answering(*addresses: Address) -> Resolver:
    return Resolver(lambda *_: list(addresses))


def test_an_address_that_takes_no_packets_costs_a_quarter_of_a_second(
    listener: socket.socket, dead_port: int
) -> None:
    port = listener.getsockname()[1]
    names = answering(*[address(port=dead_port)] * 3, address(port=port))
    started = time.monotonic()
    with dial_host("pacs", 104, 10, resolver=names) as connected:
        assert connected.getpeername()[1] == port
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert 0.7 < took(started) < 5


def test_an_address_that_refuses_costs_nothing(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    names = answering(*[address(port=free_port()) for _ in range(10)], address(port=port))
    started = time.monotonic()
    dial_host("pacs", 104, 10, resolver=names).close()
    assert took(started) < 2


def test_the_families_take_turns(listener: socket.socket, dead_port: int) -> None:
    dead = address("::ffff:127.0.0.1", dead_port, socket.AF_INET6)
    names = answering(*[dead] * 5, address(port=listener.getsockname()[1]))
    started = time.monotonic()
    dial_host("pacs", 104, 10, resolver=names).close()
    assert took(started) < 1.2


def test_all_addresses_together_have_one_deadline(dead_port: int) -> None:
    ticks: list[None] = []
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        dial_host(
            "pacs", 104, 1.3, lambda: ticks.append(None), resolver=answering(*[address(port=dead_port)] * 8)
        )
    assert 1.2 < took(started) < 4
    assert len(ticks) >= 2


def test_a_name_with_no_address_that_connects_gives_the_last_error() -> None:
    with pytest.raises(ConnectionRefusedError):
        dial_host("pacs", 104, 5, resolver=answering(address(port=free_port()), address(port=free_port())))


def test_no_socket_is_left_behind(listener: socket.socket, dead_port: int) -> None:
    names = answering(address(port=dead_port), address(port=listener.getsockname()[1]))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        dial_host("pacs", 104, 5, resolver=names).close()
    assert len(os.listdir("/proc/self/fd")) == before
