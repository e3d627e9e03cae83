"""Name lookups with a deadline, and name servers that are slow, gone, wrong or back again."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ingest.errors import ResolverAwayError
from ingest.network import resolver
from ingest.network.resolver import Address, Resolver
from tests.support.nodes import eventually
from tests.unit.network.addresses import address


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
    names = Resolver(server, fresh_seconds=0.0, client_response_seconds=0.2, failure_recheck_seconds=5)
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
    ended = Resolver(server, fresh_seconds=0.0, max_stale_seconds=0.0)
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
    before = names._entries
    child = os.fork()
    if child == 0:
        os._exit(0 if names._entries is not before and not names._entries else 1)
    assert os.waitpid(child, 0)[1] == 0
