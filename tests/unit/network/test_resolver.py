"""Names and connections within a deadline, with name servers that are slow, gone, wrong or back again."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ingest.network import resolver
from ingest.network.dialer import dial
from ingest.network.resolver import Address, Resolver, ResolverAwayError
from tests.support.nodes import eventually
from tests.support.peers import free_port


def address(host: str = "127.0.0.1", port: int = 1, family: int = socket.AF_INET) -> Address:
    where = (host, port) if family == socket.AF_INET else (host, port, 0, 0)
    return socket.AddressFamily(family), socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where


class NameServer:
    """Answers with `answer`, after `open` is set; counts its questions."""

    def __init__(self) -> None:
        self.answer: list[Address] | OSError = [address()]
        self.open = threading.Event()
        self.open.set()
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        answer = self.answer
        self.open.wait(30)
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.open.set()
    for each in threading.enumerate():
        if each.name == "resolver":
            each.join(10)


def took(started: float) -> float:
    return time.monotonic() - started


def test_a_lookup_ends_at_the_deadline_and_its_caller_has_its_turns(server: NameServer) -> None:
    server.open.clear()
    ticks: list[float] = []
    started = time.monotonic()
    with pytest.raises(ResolverAwayError, match=r"within 1\.2 s"):
        Resolver(server).resolve("pacs", 104, 1.2, lambda: ticks.append(time.monotonic()))
    assert 1.1 < took(started) < 4
    assert len(ticks) >= 2


def test_what_the_caller_raises_in_its_turn_ends_the_wait(server: NameServer) -> None:
    server.open.clear()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Resolver(server).resolve("pacs", 104, 20, stop)


def test_a_name_has_one_lookup_at_a_time_and_later_callers_fail_at_once(server: NameServer) -> None:
    server.open.clear()
    names = Resolver(server)
    threads = threading.active_count()
    with pytest.raises(ResolverAwayError):
        names.resolve("pacs", 104, 0.3)
    started = time.monotonic()
    for _ in range(50):
        with pytest.raises(ResolverAwayError):
            names.resolve("pacs", 104, 0.3)
    assert took(started) < 0.3 * 10
    assert server.asked == 1
    assert threading.active_count() <= threads + 1


def test_after_one_wait_in_vain_other_names_are_waited_for_briefly_until_one_is_answered(
    server: NameServer,
) -> None:
    server.open.clear()
    names = Resolver(server)
    with pytest.raises(ResolverAwayError):
        names.resolve("pacs", 104, 0.5)
    started = time.monotonic()
    for number in range(4):
        with pytest.raises(ResolverAwayError):
            names.resolve(f"pacs{number}", 104, 20)
    assert took(started) < 5
    server.open.set()
    eventually(lambda: names.resolve("pacs1", 104, 20), 5, "a late answer")


def test_many_names_behind_a_dead_name_server_take_a_bounded_number_of_threads(server: NameServer) -> None:
    server.open.clear()
    names = Resolver(server)
    for number in range(resolver.LOOKUPS_MAX + 10):
        with pytest.raises(ResolverAwayError):
            names.resolve(f"pacs{number}", 104, 0.01)
    assert server.asked <= resolver.LOOKUPS_MAX


def test_no_thread_is_left_once_there_is_an_answer(server: NameServer) -> None:
    for number in range(50):
        Resolver(server).resolve(f"pacs{number}", 104, 20)
        assert not [each for each in threading.enumerate() if each.name == "resolver" and each.is_alive()]


def test_a_slow_name_server_is_waited_for(server: NameServer) -> None:
    server.open.clear()
    threading.Timer(1.0, server.open.set).start()
    assert Resolver(server).resolve("pacs", 104, 20) == [address()]


def test_an_answer_that_comes_late_serves_the_next_caller(server: NameServer) -> None:
    server.open.clear()
    names = Resolver(server)
    with pytest.raises(ResolverAwayError):
        names.resolve("pacs", 104, 0.05)
    server.open.set()
    eventually(lambda: names.resolve("pacs", 104, 5) == [address()], 5, "the answer")
    assert server.asked <= 2


def test_an_answer_serves_for_a_while_and_is_asked_for_again_after_that(server: NameServer) -> None:
    names = Resolver(server, fresh_seconds=0.5)
    for _ in range(5):
        assert names.resolve("pacs", 104, 5) == [address()]
    assert server.asked == 1
    server.answer = [address("127.0.0.2")]
    time.sleep(0.6)
    assert names.resolve("pacs", 104, 5) == [address("127.0.0.2")]


@pytest.mark.parametrize("how", ["silent", "again", "fail"])
def test_the_last_good_answer_serves_while_the_name_server_is_dead(server: NameServer, how: str) -> None:
    names = Resolver(server, fresh_seconds=0.0, patience_seconds=0.2, recheck_seconds=5)
    names.resolve("pacs", 104, 5)
    if how == "silent":
        server.open.clear()
    else:
        code = socket.EAI_AGAIN if how == "again" else socket.EAI_FAIL
        server.answer = socket.gaierror(code, "name server away")
    started = time.monotonic()
    for _ in range(50):
        assert names.resolve("pacs", 104, 20) == [address()]
    assert took(started) < 3
    assert server.asked == 2


def test_an_old_answer_ends_and_does_not_outlive_a_name_that_is_gone(server: NameServer) -> None:
    names = Resolver(server, fresh_seconds=0.0)
    names.resolve("pacs", 104, 5)
    server.answer = socket.gaierror(socket.EAI_NONAME, "unknown")
    with pytest.raises(socket.gaierror, match="unknown"):
        names.resolve("pacs", 104, 5)
    ended = Resolver(server, fresh_seconds=0.0, stale_seconds=0.0)
    server.answer = [address()]
    ended.resolve("pacs", 104, 5)
    server.open.clear()
    with pytest.raises(ResolverAwayError):
        ended.resolve("pacs", 104, 0.1)


@pytest.mark.parametrize("name", ["\udcff", "a" * 300, "a..b", "\0"])
def test_what_cannot_be_a_name_has_no_address(name: str) -> None:
    with pytest.raises(OSError, match=r"."):
        Resolver().resolve(name, 104, 10)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_is_not_asked_for(server: NameServer, host: str) -> None:
    server.open.clear()
    assert Resolver(server).resolve(host, 104, 0.1)[0][4][:2] == (host, 104)
    assert server.asked == 0


def test_a_child_begins_anew(server: NameServer) -> None:
    server.open.clear()
    names = resolver.RESOLVER
    before = names._names
    child = os.fork()
    if child == 0:
        os._exit(0 if names._names is not before and not names._names else 1)
    assert os.waitpid(child, 0)[1] == 0


# -- connections


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


def answering(*addresses: Address) -> Resolver:
    return Resolver(lambda *_: list(addresses))


def test_an_address_that_takes_no_packets_costs_a_quarter_of_a_second(
    listener: socket.socket, dead_port: int
) -> None:
    port = listener.getsockname()[1]
    names = answering(*[address(port=dead_port)] * 3, address(port=port))
    started = time.monotonic()
    with dial("pacs", 104, 10, resolver=names) as connected:
        assert connected.getpeername()[1] == port
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert 0.7 < took(started) < 5


def test_an_address_that_refuses_costs_nothing(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    names = answering(*[address(port=free_port()) for _ in range(10)], address(port=port))
    started = time.monotonic()
    dial("pacs", 104, 10, resolver=names).close()
    assert took(started) < 2


def test_the_families_take_turns(listener: socket.socket, dead_port: int) -> None:
    dead = address("::ffff:127.0.0.1", dead_port, socket.AF_INET6)
    names = answering(*[dead] * 5, address(port=listener.getsockname()[1]))
    started = time.monotonic()
    dial("pacs", 104, 10, resolver=names).close()
    assert took(started) < 1.2


def test_all_addresses_together_have_one_deadline(dead_port: int) -> None:
    ticks: list[None] = []
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        dial("pacs", 104, 1.3, lambda: ticks.append(None), resolver=answering(*[address(port=dead_port)] * 8))
    assert 1.2 < took(started) < 4
    assert len(ticks) >= 2


def test_a_name_with_no_address_that_connects_gives_the_last_error() -> None:
    with pytest.raises(ConnectionRefusedError):
        dial("pacs", 104, 5, resolver=answering(address(port=free_port()), address(port=free_port())))


def test_no_socket_is_left_behind(listener: socket.socket, dead_port: int) -> None:
    names = answering(address(port=dead_port), address(port=listener.getsockname()[1]))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        dial("pacs", 104, 5, resolver=names).close()
    assert len(os.listdir("/proc/self/fd")) == before
