"""INVARIANT 9: what the study index reads of a patient is in the ledger, and nowhere else."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.instances import Made, element
from tests.support.persisting import Site

PLANTED = (b"PLANTEDNAME", b"PLANTEDPID", b"PLANTEDACC", b"PLANTEDTEXT", b"plantedname")


class Planted(Made):
    """An instance of a patient who must not be found outside of the ledger."""

    @property
    def data_set(self) -> bytes:
        whole = super().data_set
        place = whole.index(b"\x20\x00\x0d\x00")
        values = (
            (8, 0x50, "SH", b"PLANTEDACC"),
            (8, 0x60, "CS", b"CT"),
            (8, 0x1030, "LO", b"PLANTEDTEXT\xff\xfe"),
            (0x10, 0x10, "PN", b"PLANTEDNAME^\x1b$BX\xff"),
            (0x10, 0x20, "LO", b"PLANTEDPID"),
        )
        sets = element(8, 5, "CS", b"\\ISO 2022 IR 87")
        return sets + whole[:place] + b"".join(element(*one) for one in values) + whole[place:]


def run_worker(config: Path, is_done: Callable[[], bool]) -> bytes:
    """Run a real worker until a condition holds; return what it logged."""
    command = [sys.executable, "-m", "ingest.cli", "work", "persist", "-c", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + 40
            while not is_done() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.1)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        return process.communicate(timeout=30)[0]


def dump_queue(site: Site) -> bytes:
    found = []
    for key in site.client.keys("*"):
        found.append(key)
        found.append(site.client.dump(key) or b"")
    return b"\n".join(found)


def find_planted(*places: bytes) -> list[bytes]:
    return [word for place in places for word in PLANTED if word in place]


def read_files(folder: Path) -> bytes:
    return b"\n".join(
        str(path).encode() + (path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
    )


# Messages of PostgreSQL may show the values of a row.
@pytest.mark.slow
@pytest.mark.parametrize("either_ledger", ["postgresql"], indirect=True)
def test_planted_patient_is_in_no_log_queue_or_run_folder(either_ledger: Callable[..., Site]) -> None:
    sections: dict[str, Any] = {"log": {"level": "debug"}}
    site = either_ledger(**sections)
    config = site.config.data_dir.parent / "node.toml"
    config.write_text(
        f'[node]\ndata_dir = "{site.config.data_dir}"\n[queue]\nurl = "{site.config.queue.url}"\n'
        f'[ledger]\nurl = "{site.config.ledger.url}"\nindex = "full"\n[log]\nlevel = "debug"\n'
        '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\ntls = false\n'
        '[[routes]]\nto = ["pacs"]\nwhen = { PatientID = "PLANTEDPID" }\n'
    )
    # A stored one, the same UID with other content, a refused one, and one that says two things.
    for made in (Planted(), Planted(pixels=b"other"), Planted(sop="1.7", sop_in_data_set="1.8")):
        site.receive(made)
    site.receive(Planted(sop="1.9"), suffix=".C000")
    logged = run_worker(config, site.settled)
    with site.ledger() as ledger:
        [found, *_] = ledger.study_lists.find_studies(_filter(accession_number="PLANTEDACC"))
        assert found.patient_name.startswith("PLANTEDNAME")
        with ledger.database.begin_write() as connection:
            # The next row cannot be written, and the database says why.
            connection.execute(text("ALTER TABLE studies ADD CONSTRAINT refuses CHECK (study_uid <> '1.10')"))
    try:
        site.receive(Planted(sop="1.10.1", study="1.10"))
        logged += run_worker(config, lambda: was_tried(site))
    finally:
        with site.ledger() as ledger, ledger.database.begin_write() as connection:
            connection.execute(text("ALTER TABLE studies DROP CONSTRAINT refuses"))
    assert b"not_persisted" in logged
    assert find_planted(logged, dump_queue(site), read_files(site.config.run_dir)) == []


def _filter(**conditions: Any) -> Any:
    from ingest.ledger.instance_filter import InstanceFilter

    return InstanceFilter(**conditions)


def was_tried(site: Site) -> bool:
    """Wait until the worker has tried the last entry."""
    if site.pending() == 0:
        return False
    time.sleep(1.0)
    return True
