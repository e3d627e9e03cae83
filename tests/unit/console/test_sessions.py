"""Sessions end in time, survive the process, and keep searches off the disk."""

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest

from ingest.console.auth import sessions as module
from ingest.console.auth.roles import Role
from ingest.console.auth.sessions import MAX_SEARCHES, MAX_SESSIONS, MAX_SESSIONS_PER_USER, Sessions
from ingest.console.problems import ProblemError
from ingest.console.web import THREADS, WAITING_MAX, WorkPool

HOUR, MINUTE = 3_600_000, 60_000


class Clock:
    now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "unix_ms", clock)
    return clock


def test_session_ends_without_a_request_and_after_its_whole_time(tmp_path: Path, clock: Clock) -> None:
    sessions = Sessions(tmp_path, 8 * HOUR, 30 * MINUTE)
    idle, busy = (sessions.open("anna", Role.VIEWER, "1", "password") for _ in range(2))
    for _ in range(23):
        clock.now += 20 * MINUTE
        assert sessions.find(busy) is not None
    assert sessions.find(idle) is None
    clock.now += 20 * MINUTE
    assert sessions.find(busy) is None


def test_stream_of_events_does_not_prolong_a_session(tmp_path: Path, clock: Clock) -> None:
    sessions = Sessions(tmp_path, 8 * HOUR, 30 * MINUTE)
    secret = sessions.open("anna", Role.VIEWER, "1", "password")
    clock.now += 20 * MINUTE
    assert sessions.find(secret, is_activity=False) is not None
    clock.now += 20 * MINUTE
    assert sessions.find(secret, is_activity=False) is None


def test_clock_that_is_set_back_ends_a_session(tmp_path: Path, clock: Clock) -> None:
    sessions = Sessions(tmp_path, 8 * HOUR, 30 * MINUTE)
    secret = sessions.open("anna", Role.VIEWER, "1", "password")
    clock.now -= HOUR
    assert sessions.find(secret) is None


def test_login_outlives_the_process_and_the_search_does_not(tmp_path: Path, clock: Clock) -> None:
    sessions = Sessions(tmp_path, 8 * HOUR, 30 * MINUTE)
    secret = sessions.open("anna", Role.OPERATOR, "1", "password")
    found = sessions.find(secret)
    assert found is not None
    name = sessions.keep_search(found[0], {"patient_name": "MÜLLER"})
    assert sessions.find_search(found[0], name) == {"patient_name": "MÜLLER"}
    sessions.save()
    path = tmp_path / "sessions.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_text()
    assert "ller" not in json.dumps(json.loads(path.read_text()), ensure_ascii=False)
    again = Sessions(tmp_path, 8 * HOUR, 30 * MINUTE)
    found = again.find(secret)
    assert found is not None
    assert (found[1].user, found[1].role) == ("anna", Role.OPERATOR)
    assert again.find_search(found[0], name) is None


def test_search_of_another_session_is_not_found(tmp_path: Path, clock: Clock) -> None:
    sessions = Sessions(tmp_path, 8 * HOUR, 30 * MINUTE)
    first, second = (sessions.find(sessions.open(name, Role.VIEWER, "1", "password")) for name in "ab")
    assert first is not None
    assert second is not None
    name = sessions.keep_search(first[0], {"patient_id": "1"})
    assert sessions.find_search(second[0], name) is None


def test_damaged_file_and_full_disk_cost_no_login(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sessions.json").write_text("{")
    sessions = Sessions(tmp_path, 8 * HOUR, 30 * MINUTE)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", fail)
    assert sessions.find(sessions.open("anna", Role.VIEWER, "1", "password")) is not None


def test_number_of_sessions_and_searches_is_bounded(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "write_json", lambda *_: None)
    sessions = Sessions(tmp_path, 8 * HOUR, 30 * MINUTE)
    mine = [sessions.open("anna", Role.VIEWER, "1", "password") for _ in range(MAX_SESSIONS_PER_USER + 1)]
    assert sessions.find(mine[0]) is None
    assert sessions.find(mine[-1]) is not None
    for number in range(MAX_SESSIONS):
        sessions.open(f"user{number}", Role.VIEWER, "1", "password")
    assert len(sessions._sessions) == MAX_SESSIONS
    found = sessions.find(sessions.open("anna", Role.VIEWER, "1", "password"))
    assert found is not None
    names = [sessions.keep_search(found[0], {"n": number}) for number in range(MAX_SEARCHES + 1)]
    assert sessions.find_search(found[0], names[0]) is None
    assert sessions.find_search(found[0], names[-1]) == {"n": MAX_SEARCHES}


def test_work_that_hangs_is_given_up_and_noticed() -> None:
    """Threads that hang cost requests a 503, and the heartbeat stops when all of them hang."""

    async def use() -> None:
        pool, release = WorkPool(), threading.Event()
        hanging = [asyncio.create_task(pool.run(0.2, lambda: release.wait(30))) for _ in range(THREADS)]
        for task in hanging:
            with pytest.raises(ProblemError) as caught:
                await task
            assert caught.value.status == 503
        assert pool.is_stuck(0.1)
        assert not pool.is_stuck(10)
        release.set()
        assert await pool.run(10, lambda: 42) == 42
        assert not pool.is_stuck(0.0)
        pool.close()

    asyncio.run(use())


def test_work_beyond_the_queue_is_refused_at_once() -> None:
    async def use() -> None:
        pool, release = WorkPool(), threading.Event()
        tasks = [
            asyncio.create_task(pool.run(20, lambda: release.wait(20))) for _ in range(THREADS + WAITING_MAX)
        ]
        await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(ProblemError, match="too many"):
            await pool.run(20, lambda: None)
        assert time.monotonic() - began < 1
        release.set()
        await asyncio.gather(*tasks)
        pool.close()

    asyncio.run(use())


def test_probes_are_answered_while_all_other_threads_hang(tmp_path: Path) -> None:
    """A balancer must not take a healthy node out because people search or log in."""
    from starlette.requests import Request

    from ingest.config.model import Config, NodeSettings
    from ingest.console.app import build_app, build_console
    from ingest.console.auth.roles import NOBODY
    from ingest.console.health import show_live, show_ready
    from ingest.supervisor.console_watch import ConsoleLink

    async def use() -> None:
        config = Config(node=NodeSettings(data_dir=tmp_path))
        console, release = build_console(config, tmp_path / "ingest.toml", ConsoleLink()), threading.Event()
        hanging = [
            asyncio.create_task(pool.run(20, lambda: release.wait(20)))
            for pool in (console.work, console.logins, console.provider)
            for _ in range(pool._max)
        ]
        await asyncio.sleep(0)
        state = {"principal": NOBODY}
        scope = {"type": "http", "app": build_app(console)._app, "headers": [], "state": state}
        try:
            for show in (show_live, show_ready):
                answer = await asyncio.wait_for(show(Request(scope)), 5)
                assert json.loads(bytes(answer.body)) == {"ok": False}
        finally:
            release.set()
            await asyncio.gather(*hanging)
            for pool in console.pools:
                pool.close()

    asyncio.run(use())


def test_streams_asked_for_at_the_same_time_are_counted_before_they_begin() -> None:
    from starlette.requests import ClientDisconnect

    from ingest.console.events import MAX_STREAMS_PER_PRINCIPAL, EventHub

    async def use() -> None:
        async def vanish(_message: object) -> None:
            raise OSError

        async def receive() -> dict[str, str]:
            return {"type": "http.disconnect"}

        hub = EventHub(lambda: asyncio.sleep(0))
        opened = [
            hub.open_stream("anna", lambda: True, lambda _: b"") for _ in range(MAX_STREAMS_PER_PRINCIPAL)
        ]
        with pytest.raises(ProblemError, match="too many pages"):
            hub.open_stream("anna", lambda: True, lambda _: b"")
        # A browser that vanishes before the first event gives its place back.
        for response in opened:
            with pytest.raises(ClientDisconnect):
                await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, vanish)
        assert hub._streams.total() == 0

    asyncio.run(use())


def test_change_does_not_wait_for_a_snapshot_that_is_being_taken(tmp_path: Path) -> None:
    from ingest.config.model import Config
    from ingest.console.live.snapshot import SnapshotSource

    source = SnapshotSource(Config())
    with source._lock:
        began = time.monotonic()
        changing = threading.Thread(target=source.expire, daemon=True)
        changing.start()
        changing.join(5)
        assert time.monotonic() - began < 4
