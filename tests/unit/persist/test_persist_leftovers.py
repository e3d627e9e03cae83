"""What cannot be removed is removed later, without a restart; a batch is bounded in bytes."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ingest.alarms import standing_alarms
from ingest.filesystem.beneath import open_beneath
from ingest.queue.sweep import find_missing
from ingest.spool.abandoned_partials import AbandonedPartials
from tests.support.handing import handing_off, places, settings_of
from tests.support.instances import Made
from tests.support.nodes import eventually
from tests.support.persisting import Site
from tests.support.segments import SegmentWriter
from tests.support.servers import Valkey
from tests.support.spools import claim, config, keep
from tests.unit.persist.test_persist_away import working


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.workers.persist.worker.CLEANUP_SECONDS", 0.05)
    monkeypatch.setattr("ingest.workers.persist.spool_leftovers.RETRY_SECONDS", 0.05)
    monkeypatch.setattr("ingest.queue.consumer.IDLE_MILLISECONDS", 20)
    monkeypatch.setattr("ingest.workers.persist.worker.CLAIM_SECONDS", 0.02)
    monkeypatch.setattr("ingest.workers.backoff.BACK_OFF_SECONDS", (0.02,))


class Failing:
    """A function of `os` that fails with EIO, while told to, for paths that have `part` in them."""

    def __init__(self, real: Any, part: str) -> None:
        self.real, self.part, self.fails, self.failed = real, part, True, 0

    def __call__(self, path: Any, *rest: Any, dir_fd: int | None = None, **named: Any) -> Any:
        folder = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else ""
        if self.fails and self.part in f"{folder}/{path}":
            self.failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.real(path, *rest, dir_fd=dir_fd, **named)


def test_spool_file_that_could_not_be_removed_goes_while_the_worker_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(os.unlink, "/ready/")
    monkeypatch.setattr(os, "unlink", failing)
    for number in range(30):
        site.receive(Made(sop=f"1.9.{number}"))
    with working(site):
        eventually(lambda: site.client.xlen(site.stream) == 0 and failing.failed > 40)
        assert len(site.waiting()) == 30
        failing.fails = False
        eventually(lambda: site.waiting() == [])
    assert len(site.instances()) == len(site.stored()) == 30


def test_record_that_could_not_be_marked_is_marked_while_the_worker_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.in_segments = True
    real, failed = os.pwrite, []

    def failing(*how: Any) -> int:
        if len(failed) < 3:
            failed.append(how)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*how)

    monkeypatch.setattr(os, "pwrite", failing)
    site.receive(Made())
    with working(site):
        eventually(lambda: site.undone() == [])
    assert len(failed) == 3
    assert len(site.instances()) == 1


def test_temporary_file_of_the_store_that_could_not_be_removed_goes_while_the_worker_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(os.unlink, "/.incoming/")
    monkeypatch.setattr(os, "unlink", failing)
    site.in_segments = True
    site.receive(Made())
    incoming = site.config.store_root / ".incoming"
    with working(site):
        eventually(site.settled)
        assert [path for path in incoming.glob("*/*") if path.is_file()] != []
        failing.fails = False
        eventually(lambda: [path for path in incoming.glob("*/*") if path.is_file()] == [])


def old(path: Path, content: bytes = b"x") -> Path:
    """A file that nobody has written to for long."""
    path.write_bytes(content)
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def test_partial_file_that_could_not_be_removed_goes_and_those_in_use_stay(tmp_path: Path) -> None:
    spool = claim(config(tmp_path))
    try:
        forgotten = old(spool.slot.path / "partial" / "forgotten")
        entry = spool.begin()
        used = spool.slot.path / "partial" / entry.name
        os.utime(used, (time.time() - 3600,) * 2)
        young = spool.slot.path / "partial" / "young"
        young.write_bytes(b"x")
        partials = AbandonedPartials(spool.slot.path)
        assert partials.remove() == 0
        assert forgotten.exists()
        assert partials.remove() == 1
        assert not forgotten.exists()
        assert used.exists()
        assert young.exists()
        spool.discard(entry)
    finally:
        spool.close()


def test_listener_removes_forgotten_partial_files_while_it_runs(
    tmp_path: Path, redis_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.queue.publisher.SWEEP_SECONDS", 0.1)
    with handing_off(settings_of(tmp_path, redis_server)) as (spool, _):
        forgotten = old(spool.slot.path / "partial" / "forgotten")
        eventually(lambda: not forgotten.exists())


def test_what_cannot_be_removed_keeps_no_listener_from_starting_and_no_reference_from_the_queue(
    tmp_path: Path, redis_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.queue.publisher.SWEEP_SECONDS", 0.1)
    monkeypatch.setattr("ingest.queue.publisher.SWEEP_AGE_SECONDS", 0.0)
    settings = settings_of(tmp_path, redis_server)
    for slot in ("L0", "L1"):
        # unlink(2) of a folder fails, whoever asks.
        (settings.spool_dir / slot / "partial" / "stays").mkdir(parents=True)
        (settings.spool_dir / slot / "segments" / "0.tmp").mkdir(parents=True)
        (settings.spool_dir / slot / "ready").mkdir()
        (settings.spool_dir / slot / "ready" / "0001.dcm").write_bytes(b"data")
    with handing_off(settings) as (spool, _), redis_server.client() as client:
        assert spool.slot.name == "L0"
        eventually(lambda: set(places(client, spool)) == {"L0/ready/0001.dcm", "L1/ready/0001.dcm"})


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES], ids=errno.errorcode.__getitem__)
def test_file_that_cannot_be_looked_at_is_put_back_and_keeps_back_no_other(
    tmp_path: Path, redis_server: Valkey, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    settings = settings_of(tmp_path, redis_server)
    spool = claim(settings)
    try:
        kept = [keep(spool) for _ in range(3)]
        real = os.stat

        def failing(path: Any, *rest: Any, **named: Any) -> os.stat_result:
            if str(path).endswith(kept[1]):
                raise OSError(number, os.strerror(number))
            return real(path, *rest, **named)

        with redis_server.client() as client, monkeypatch.context() as patch:
            patch.setattr(os, "stat", failing)
            found = find_missing(spool.root, spool.id, client, [spool.slot.name], 0.0)
        assert [place.path for place in found] == kept
    finally:
        spool.close()


def test_batch_out_of_segments_holds_no_data_sets_in_memory(site: Site) -> None:
    site.in_segments = True
    most = 160
    for number in range(most):
        if number % 6 == 0:
            site.segment = SegmentWriter(site.config.spool_dir, 0x18A0_0000_0000_0001 + number)
        site.receive(Made(sop=f"1.9.{number}", pixels=bytes([number]) * (1 << 20)))
    program = (
        "import resource, sys, threading; from ingest.config.model import Config;"
        "from tests.support.persisting import Drainer;"
        "worker = Drainer(Config.model_validate_json(sys.stdin.read()), threading.Event(), 'one');"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; worker.run();"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=site.config.model_dump_json(),
        text=True,
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert len(site.instances()) == most
    assert int(ended.stderr.split()[-1]) < 48 * 1024  # KiB, of 160 MiB


def test_what_cannot_be_persisted_for_long_is_an_alarm_until_it_is(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.workers.persist.unpersisted_alarm.ALARM_SECONDS", 0.2)
    fails = [True]

    def bad_sector(root: Path, where: str, flags: int) -> int:
        if fails[0] and where.endswith("0001.dcm"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_beneath(root, where, flags)

    monkeypatch.setattr("ingest.workers.persist.spool_entry.open_beneath", bad_sector)
    for number in range(5):
        site.receive(Made(sop=f"1.9.{number}"))

    def alarms() -> list[str]:
        return [alarm.name for alarm in standing_alarms(site.config.run_dir)]

    with working(site):
        eventually(lambda: alarms() == ["not_persisted"])
        assert "1 received" in standing_alarms(site.config.run_dir)[0].cause
        fails[0] = False
        eventually(site.settled)
        eventually(lambda: alarms() == [])
