"""The limit on failed logins slows guessing down, and locks nobody out."""

from ingest.console.auth.login_limit import FREE_ADDRESS, MAX_ENTRIES, LoginLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_failures_of_a_pair_delay_it_up_to_a_minute_and_a_success_forgets_them() -> None:
    clock = Clock()
    limit = LoginLimit(clock)
    waits = []
    for _ in range(12):
        limit.note_failure("anna", "10.0.0.1")
        waits.append(limit.wait_seconds("anna", "10.0.0.1"))
    assert waits[:5] == [0, 0, 1, 2, 4]
    assert max(waits) == 60
    clock.now += 60
    assert limit.wait_seconds("anna", "10.0.0.1") == 0
    limit.note_success("anna", "10.0.0.1")
    limit.note_failure("anna", "10.0.0.1")
    assert limit.wait_seconds("anna", "10.0.0.1") == 0


def test_attack_from_the_address_of_a_proxy_keeps_out_nobody_who_has_logged_in_there() -> None:
    limit = LoginLimit(Clock())
    limit.note_success("anna", "proxy")
    for number in range(10 * FREE_ADDRESS):
        limit.note_failure(f"guess{number}", "proxy")
    assert limit.wait_seconds("anna", "proxy") == 0
    assert limit.wait_seconds("new", "proxy") > 0


def test_attack_on_one_user_from_everywhere_keeps_that_user_out_for_seconds_only() -> None:
    limit = LoginLimit(Clock())
    for number in range(1000):
        limit.note_failure("anna", f"10.0.{number // 250}.{number % 250}")
    assert 0 < limit.wait_seconds("anna", "192.168.0.1") <= 10
    assert limit.wait_seconds("victor", "192.168.0.1") == 0


def test_flood_of_addresses_needs_bounded_memory() -> None:
    limit = LoginLimit(Clock())
    for number in range(2 * MAX_ENTRIES):
        limit.note_failure(f"user{number}", f"address{number}")
    assert len(limit._failures) == MAX_ENTRIES


def test_attempts_at_the_same_time_are_no_way_around_the_limit() -> None:
    limit = LoginLimit(Clock())
    waits = [limit.begin("anna", "10.0.0.1") for _ in range(20)]
    assert [wait == 0 for wait in waits] == [True] * 3 + [False] * 17
    for _ in range(3):
        limit.note_failure("anna", "10.0.0.1")
        limit.end("anna", "10.0.0.1")
    assert limit.begin("anna", "10.0.0.1") > 0
    assert limit.begin("victor", "10.0.0.1") == 0
    assert not limit._pending.keys() - {
        ("pair", "victor", "10.0.0.1"),
        ("address", "10.0.0.1"),
        ("user", "victor"),
    }


def test_logins_at_the_same_time_behind_one_proxy_do_not_keep_each_other_out() -> None:
    limit = LoginLimit(Clock())
    limit.note_success("anna", "proxy")
    waits = [limit.begin(f"user{number}", "proxy") for number in range(FREE_ADDRESS)]
    assert waits == [0] * FREE_ADDRESS
    assert limit.begin("one more", "proxy") > 0
    assert limit.begin("anna", "proxy") == 0
