"""Connections without an association: bounded, the oldest goes; addresses that fail too often wait."""

from ingest.node.newcomers import ADDRESSES_MAX, WINDOW_SECONDS, Newcomers


def test_oldest_makes_room() -> None:
    newcomers: Newcomers[int] = Newcomers(3, 9, 0)
    assert [newcomers.add(number, f"a{number}") for number in range(4)] == [None, None, None, 0]
    newcomers.remove(0)
    newcomers.remove(1)  # has its association
    assert newcomers.add(4, "a4") is None
    assert newcomers.add(5, "a5") == 2


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
