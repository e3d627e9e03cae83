"""Connections without an association: bounded, who has most makes room; who fails too often waits."""

import pytest

from ingest.acceptor.pending_connections import ADDRESSES_MAX, WINDOW_SECONDS, Newcomers, holder


def test_oldest_makes_room() -> None:
    newcomers: Newcomers[int] = Newcomers(3, 9, 0)
    assert [newcomers.add(number, f"a{number}") for number in range(4)] == [None, None, None, 0]
    newcomers.remove(0)
    newcomers.remove(1)  # has its association
    assert newcomers.add(4, "a4") is None
    assert newcomers.add(5, "a5") == 2


def test_who_has_most_makes_room_and_not_who_has_waited_longest() -> None:
    newcomers: Newcomers[object] = Newcomers(24, 12, 0)
    assert newcomers.add("sound", "10.0.0.1") is None
    for number in range(1000):  # six addresses, each below its own bound
        crowded_out = newcomers.add(number, f"10.0.1.{number % 6}")
        assert crowded_out != "sound"
        newcomers.remove(crowded_out)
    assert len(newcomers) == 24
    assert list(newcomers) == ["sound", *range(1000 - 23, 1000)], "of those that have most, the oldest went"


def test_one_address_makes_room_among_its_own() -> None:
    newcomers: Newcomers[int] = Newcomers(100, 2, 0)
    assert newcomers.add(1, "other") is None
    assert [newcomers.add(number, "busy") for number in (2, 3, 4)] == [None, None, 2]
    newcomers.remove(2)
    newcomers.remove(2)
    assert len(newcomers) == 3
    assert newcomers.add(5, "busy") == 3


def test_who_fails_too_often_is_refused_until_the_minute_is_over() -> None:
    newcomers: Newcomers[int] = Newcomers(9, 9, 3)
    assert [newcomers.failed("bad", at) for at in (10.0, 11.0, 12.0, 13.0)] == [False, False, True, False]
    assert newcomers.refused("bad", 14.0)
    assert not newcomers.refused("good", 14.0)
    assert not newcomers.refused("bad", 10.0 + WINDOW_SECONDS)
    assert newcomers.failed("bad", 10.0 + WINDOW_SECONDS) is False
    assert not newcomers.refused("bad", 11.0 + WINDOW_SECONDS)


def test_no_limit_refuses_nobody() -> None:
    newcomers: Newcomers[int] = Newcomers(9, 9, 0)
    assert not any(newcomers.failed("bad", 1.0) for _ in range(1000))
    assert not newcomers.refused("bad", 1.0)


def test_memory_is_bounded_by_addresses() -> None:
    newcomers: Newcomers[int] = Newcomers(9, 9, 1)
    for number in range(ADDRESSES_MAX + 1):
        newcomers.failed(f"a{number}", 1.0)
    assert not newcomers.refused("a0", 1.0)
    assert newcomers.refused("a1", 1.0)


def test_who_is_shut_out_stays_so_however_many_others_fail() -> None:
    newcomers: Newcomers[int] = Newcomers(9, 9, 3)
    assert [newcomers.failed("bad", 1.0) for _ in range(3)] == [False, False, True]
    for number in range(ADDRESSES_MAX + 1):
        newcomers.failed(f"a{number}", 2.0)
    assert newcomers.refused("bad", 3.0)


def test_crowded_out_are_counted_by_address_and_minute() -> None:
    newcomers: Newcomers[int] = Newcomers(9, 9, 0)
    assert [newcomers.crowded_out("a", at) for at in (1.0, 2.0, 1.0 + WINDOW_SECONDS)] == [1, 2, 1]
    assert newcomers.crowded_out("b", 2.0) == 1


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_ipv6_counts_with_the_network_that_one_holder_has(address: str, whose: str) -> None:
    assert holder(address) == whose


def test_addresses_of_one_ipv6_network_are_one_in_both_tables() -> None:
    newcomers: Newcomers[int] = Newcomers(9, 2, 3)
    assert [newcomers.add(number, f"2001:db8::{number}") for number in (1, 2, 3)] == [None, None, 1]
    assert [newcomers.failed(f"2001:db8::{number}", 1.0) for number in (4, 5, 6)] == [False, False, True]
    assert newcomers.refused("2001:db8::7", 2.0)
    assert not newcomers.refused("2001:db8:0:1::7", 2.0)
