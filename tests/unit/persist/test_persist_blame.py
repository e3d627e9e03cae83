"""Trouble of disk, descriptors, memory or ledger waits; only an image's own bytes set it aside."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import make_url

from ingest.config.model import Config
from ingest.dicom.file_header import InstanceHeader
from ingest.filesystem.beneath import open_beneath
from ingest.ledger import InstanceState
from ingest.workers.persist.isolated_reader import read_isolated
from tests.support.instances import Made
from tests.support.nodes import eventually
from tests.support.persisting import Site
from tests.unit.persist.test_persist_away import working

Sites = Callable[..., Site]

STORED, QUARANTINED = InstanceState.STORED, InstanceState.QUARANTINED
TRIES = 15
"""More than any count of attempts."""

OF_THE_HOST = [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody touches is abandoned at once, and no wait is long."""
    monkeypatch.setattr("ingest.queue.consumer.IDLE_MILLISECONDS", 20)
    monkeypatch.setattr("ingest.workers.persist.worker.CLAIM_SECONDS", 0.02)
    monkeypatch.setattr("ingest.workers.backoff.BACK_OFF_SECONDS", (0.02,))


class Failing:
    """A function of `os` that fails while `error` is set, for descriptors and paths of the spool."""

    def __init__(self, real: Callable[..., Any], error: BaseException) -> None:
        self.real, self.error, self.failed = real, error, 0
        self.fails = True

    def __call__(self, what: Any, *rest: Any, **named: Any) -> Any:
        parts = [os.readlink(f"/proc/self/fd/{what}")] if isinstance(what, int) else [what, *rest]
        path = "/".join(map(str, parts))
        if self.fails and "/ready/" in path:
            self.failed += 1
            raise self.error
        return self.real(what, *rest, **named)


def assert_waits_and_is_stored(site: Site, failing: Failing) -> None:
    sent = [Made(sop=f"1.9.{number}") for number in range(3)]
    for made in sent:
        site.receive(made)
    with structlog.testing.capture_logs() as logs, working(site):
        eventually(lambda: failing.failed >= TRIES * len(sent), 30)
        assert site.quarantined() == []
        failing.fails = False
        eventually(site.settled)
    assert [(row.state, row.note) for row in site.instances()] == [(STORED, "")] * len(sent)
    assert {row.sop_instance_uid for row in site.instances()} == {made.sop for made in sent}
    assert site.deliveries() == len(sent)
    assert not [entry for entry in logs if entry.get("exc_info")]
    assert [entry for entry in logs if entry["event"] == "persisting_fails"]


@pytest.mark.parametrize("number", OF_THE_HOST, ids=errno.errorcode.__getitem__)
def test_spool_file_that_cannot_be_opened_waits_for_as_long_as_it_takes(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing = Failing(open_beneath, OSError(number, os.strerror(number)))
    monkeypatch.setattr("ingest.workers.persist.spool_entry.open_beneath", failing)
    assert_waits_and_is_stored(site, failing)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE], ids=errno.errorcode.__getitem__)
def test_spool_file_that_cannot_be_read_waits_for_as_long_as_it_takes(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing = Failing(os.pread, OSError(number, os.strerror(number)))
    monkeypatch.setattr(os, "pread", failing)
    assert_waits_and_is_stored(site, failing)


def test_want_of_memory_blames_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(os.pread, MemoryError())
    monkeypatch.setattr(os, "pread", failing)
    assert_waits_and_is_stored(site, failing)


def test_one_file_that_cannot_be_read_keeps_back_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []

    def bad_sector(root: Path, where: str, flags: int) -> int:
        if where.endswith("0003.dcm"):
            failed.append(where)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_beneath(root, where, flags)

    monkeypatch.setattr("ingest.workers.persist.spool_entry.open_beneath", bad_sector)
    for number in range(40):
        site.receive(Made(sop=f"1.9.{number}"))
    with working(site):
        eventually(lambda: len(site.waiting()) == 1 and len(failed) > TRIES)
    assert [row.state for row in site.instances()] == [STORED] * 39
    assert site.waiting() == ["0003.dcm"]


def test_stored_file_that_cannot_be_compared_blames_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.receive(Made())
    site.work()
    real, failed = os.preadv, []

    def unreadable(fd: int, *rest: Any) -> int:
        if len(failed) < TRIES:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, *rest)

    monkeypatch.setattr(os, "preadv", unreadable)
    site.receive(Made(calling="CT2"))
    with working(site):
        eventually(site.settled)
    assert len(failed) == TRIES
    assert [row.state for row in site.instances()] == [STORED]
    assert site.quarantined() == []


def test_worker_with_few_descriptors_takes_fewer_at_a_time(site: Site) -> None:
    for number in range(150):
        site.receive(Made(sop=f"1.9.{number}", study=f"1.2.{number}", series=f"1.3.{number}"))
    program = (
        "import resource, sys, threading; resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48));"
        "from ingest.config.model import Config; from tests.support.persisting import Drainer;"
        "Drainer(Config.model_validate_json(sys.stdin.read()), threading.Event(), 'few').run()"
    )
    config: Config = site.config
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=config.model_dump_json(),
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Too many open files" not in ended.stdout + ended.stderr
    assert [row.state for row in site.instances()] == [STORED] * 150


# --- the ledger


@contextlib.contextmanager
def read_only(url: str) -> Iterator[None]:
    """A PostgreSQL that answers every write with 25006, as a standby or one in maintenance does."""
    import psycopg  # an optional dependency

    where = make_url(url)
    reach = f"host={where.query['host']} user=postgres dbname=postgres"

    def switch(value: str) -> None:
        with psycopg.connect(
            reach, autocommit=True, options="-c default_transaction_read_only=off"
        ) as server:
            server.execute(f"ALTER DATABASE postgres SET default_transaction_read_only = {value}")
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

    switch("on")
    try:
        yield
    finally:
        switch("off")


def test_read_only_postgresql_is_waited_for(make_persist_site: Sites, postgresql_url: str) -> None:
    site = make_persist_site(ledger={"url": postgresql_url})
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.exec_driver_sql("TRUNCATE attempts, deliveries, instances")
    with structlog.testing.capture_logs() as logs, working(site):
        with read_only(postgresql_url):
            site.receive(Made())
            eventually(lambda: any("read-only" in str(entry.get("error")) for entry in logs))
            assert site.waiting() != []
        eventually(site.settled)
    assert [row.state for row in site.instances()] == [STORED]
    assert not [entry for entry in logs if entry.get("exc_info")]


@pytest.mark.parametrize("damage", ["malformed", "no database"])
def test_ledger_that_is_damaged_is_waited_for(site: Site, damage: str) -> None:
    with site.ledger():
        pass
    file = Path(str(make_url(site.config.ledger_url).database))
    sound = file.read_bytes()
    broken = bytearray(sound)
    broken[: 100 if damage == "no database" else 0] = b"no database" * 9 + b"x"
    if damage == "malformed":
        broken[4096:] = b"\xff" * (len(sound) - 4096)
    file.write_bytes(broken)
    site.receive(Made())
    with structlog.testing.capture_logs() as logs, working(site):
        eventually(lambda: any(entry["event"] == "ledger_away" for entry in logs))
        assert len(site.waiting()) == 1
        for journal in ("-wal", "-shm"):
            Path(f"{file}{journal}").unlink(missing_ok=True)
        file.write_bytes(sound)
        eventually(site.settled)
    assert [row.state for row in site.instances()] == [STORED]
    assert not [entry for entry in logs if entry.get("exc_info")]


# --- what is about the image


def test_file_that_kills_whatever_reads_it_is_set_aside_with_what_its_file_meta_says(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def deadly(*_: object) -> Any:
        raise Killed

    program = (
        "import os, sys; from ingest.workers.persist.isolated_reader import main;"
        "os.abort() if sys.argv[2] == 'header' else main(sys.argv[1:])"
    )
    monkeypatch.setattr("ingest.workers.persist.isolated_reader.COMMAND", (sys.executable, "-c", program))
    monkeypatch.setattr("ingest.workers.persist.batch.read_instance_header", deadly)
    site.receive(Made())
    deaths = 0
    while not site.settled():
        try:
            site.work()
        except Killed:
            deaths += 1
    # The trial died in place of the worker.
    assert deaths == 5
    [aside] = site.instances()
    assert (aside.state, aside.sop_instance_uid, aside.calling_ae) == (QUARANTINED, "1.2.3.4", "CT1")
    assert "SIGABRT" in aside.note


def opened(tmp_path: Path, content: bytes) -> int:
    path = tmp_path / "one.dcm"
    path.write_bytes(content)
    return os.open(path, os.O_RDONLY)


def test_trial_reads_what_can_be_read(tmp_path: Path) -> None:
    made = Made()
    trial = read_isolated(opened(tmp_path, made.file), [0x0008_0060], lambda: None)
    assert trial.fault == ""
    assert trial.header.sop_instance_uid == made.sop
    assert trial.header.series_uid == made.series
    broken = read_isolated(opened(tmp_path, b"no DICOM"), [], lambda: None)
    assert broken.header == InstanceHeader()
    assert broken.fault


def test_trial_that_somebody_else_ended_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    monkeypatch.setattr("ingest.workers.persist.isolated_reader.COMMAND", (sys.executable, "-c", program))
    with pytest.raises(OSError, match="could not be tried"):
        read_isolated(opened(tmp_path, Made().file), [], lambda: None)
