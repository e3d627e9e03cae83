"""Reindexing: studies of an older ledger, or after another level, get their attributes from the store."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select, update

from ingest.cli import main
from ingest.dicom.study_attributes import StudyAttributeReader
from ingest.errors import StoreMissingError
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.schema import series, studies
from ingest.workers.study_reindex import StudyReindexer, reindex_studies
from tests.support.instances import Made, element
from tests.support.persisting import Site


class Described(Made):
    """An instance with attributes of patient, study and series, in Latin-1."""

    patient = "P1"

    @property
    def data_set(self) -> bytes:
        whole = super().data_set
        uids, rest = whole[: whole.index(b"\x20\x00\x0d\x00")], whole[whole.index(b"\x20\x00\x0d\x00") :]
        number = self.sop.rpartition(".")[2]
        head = element(8, 5, "CS", b"ISO_IR 100")
        between = [
            (8, 0x20, "DA", b"20260131"),
            (8, 0x50, "SH", f"ACC{self.study}".encode()),
            (8, 0x60, "CS", b"CT"),
            (0x10, 0x10, "PN", "Müller^Hans".encode("latin-1")),
            (0x10, 0x20, "LO", f"PID-{self.study}".encode()),
        ]
        end, pixels = rest.split(b"\xe0\x7f", 1)
        tail = element(0x20, 0x11, "IS", number.encode())
        return head + uids + b"".join(element(*one) for one in between) + end + tail + b"\xe0\x7f" + pixels


def receive(site: Site, *studies_: str, **changes: Any) -> None:
    for study in studies_:
        site.receive(Described(sop=f"{study}.1.7", study=study, series=f"{study}.1", **changes))
    site.work()


def columns(site: Site) -> dict[str, tuple[str, str, str]]:
    with site.ledger() as ledger, ledger.database.begin_read() as connection:
        query = select(
            studies.c.study_uid, studies.c.accession_number, studies.c.patient_name, studies.c.indexed_as
        )
        return {row[0]: tuple(row[1:]) for row in connection.execute(query)}


def forget(site: Site) -> None:
    """Make the ledger one of the time before the index."""
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        blank = {"accession_number": "", "patient_id": "", "study_date": "", "indexed_as": ""}
        connection.execute(update(studies).values(blank))
        connection.execute(update(series).values(modality="", series_number=None))


def set_level(site: Site, level: str) -> None:
    site.config = site.config.model_copy(
        update={"ledger": site.config.ledger.model_copy(update={"index": level})}
    )


def test_persisted_instance_can_be_found_at_once(site: Site) -> None:
    receive(site, "1.7", "1.8")
    site.in_segments = True
    receive(site, "1.9")
    with site.ledger() as ledger:
        for study in ("1.7", "1.8", "1.9"):
            which = InstanceFilter(accession_number=f"ACC{study}", patient_id="PID*", modality="CT")
            [found] = ledger.study_lists.find_studies(which)
            assert (found.study_uid, found.study_date, found.patient_name) == (study, "20260131", "")
            [of] = ledger.study_lists.find_series(study)
            assert (of.series_number, of.modality, of.instances) == (7, "CT", 1)


def test_older_ledger_is_indexed_by_an_idle_worker(
    either_ledger: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = either_ledger()
    receive(site, "1.7", "1.8")
    forget(site)
    monkeypatch.setattr(StudyReindexer.run_step, "__defaults__", (30.0,))
    site.work()
    assert columns(site) == {
        "1.7": ("ACC1.7", "", "identifiers"),
        "1.8": ("ACC1.8", "", "identifiers"),
    }
    with site.ledger() as ledger:
        assert [one.series_number for one in ledger.study_lists.find_series("1.7")] == [7]


def test_step_ends_in_time_and_goes_on_with_the_same_study(site: Site) -> None:
    for number in range(5):
        site.receive(Described(sop=f"1.7.{number}", study="1.7", series=f"1.7.{number}"))
    site.work()
    forget(site)
    with site.ledger() as ledger:
        reindexer = StudyReindexer(site.config, ledger, "a")
        steps = 1
        while reindexer.run_step(0.0):
            steps += 1
            assert columns(site)["1.7"][2] == "" or steps > 5
        assert steps > 5
        assert len(ledger.study_lists.find_series("1.7")) == 5
    assert columns(site)["1.7"][2] == "identifiers"


def test_other_level_adds_and_removes_attributes(site: Site) -> None:
    receive(site, "1.7")
    expected = {
        "full": ("ACC1.7", "Müller^Hans", "full"),
        "identifiers": ("ACC1.7", "", "identifiers"),
        "none": ("", "", "none"),
    }
    for level in ("full", "identifiers", "full", "none", "identifiers"):
        set_level(site, level)
        progress = reindex_studies(site.config, lambda _: None)
        assert (progress.studies, progress.left, progress.unreadable) == (1, 0, 0)
        assert columns(site)["1.7"] == expected[level], level
        with site.ledger() as ledger:
            [of] = ledger.study_lists.find_series("1.7")
            assert (of.modality, of.series_number) == (("", None) if level == "none" else ("CT", 7))


def test_study_that_got_an_instance_meanwhile_keeps_the_newer_values(site: Site) -> None:
    receive(site, "1.7")
    forget(site)
    with site.ledger() as ledger:
        pending = ledger.reindexing.find_pending_study("identifiers")
        assert pending is not None
        old = StudyAttributeReader("identifiers").read_attributes({0x0008_0050: b"OLDER"})
        assert old is not None
        site.receive(Described(sop="1.7.1.8", study="1.7", series="1.7.1"))
        site.work()
        assert not ledger.reindexing.write_study(pending, "identifiers", {"1.7.1": old}, 0)
    assert columns(site)["1.7"][0] == "ACC1.7"


def test_files_that_are_gone_or_unreadable_are_counted(site: Site) -> None:
    receive(site, "1.7", "1.8", "1.9")
    forget(site)
    gone, broken, _ = (site.config.store_root / name for name in site.stored())
    gone.unlink()
    broken.write_bytes(b"no DICOM")
    path = site.config.data_dir.parent / "node.toml"
    path.write_text(f'[node]\ndata_dir = "{site.config.data_dir}"\n')
    result = CliRunner().invoke(main, ["ledger", "reindex", "-c", str(path)])
    assert "3 of 3 studies are indexed" in result.output
    assert "2 files were gone or could not be read" in result.output
    assert result.exit_code == 1
    assert [one[0] for one in columns(site).values()] == ["", "", "ACC1.9"]


def test_store_that_is_not_mounted_is_not_taken_for_empty(site: Site, tmp_path: Path) -> None:
    receive(site, "1.7")
    forget(site)
    site.config.store_root.rename(tmp_path / "unmounted")
    site.config.store_root.mkdir()
    with pytest.raises(StoreMissingError):
        reindex_studies(site.config, lambda _: None)
    assert columns(site)["1.7"] == ("", "", "")


def _reindex(site: Site, queue: Any) -> None:
    read = 0

    def count(self: StudyReindexer, path: Path, _read: Any = StudyReindexer._read_file) -> Any:
        nonlocal read
        read += 1
        time.sleep(0.002)
        return _read(self, path)

    StudyReindexer._read_file = count
    reindex_studies(site.config, lambda _: None)
    queue.put(read)


def test_several_processes_read_no_file_twice(either_ledger: Callable[..., Site]) -> None:
    site = either_ledger()
    receive(site, *(f"1.7.{number}" for number in range(30)))
    forget(site)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    site.client.close()
    processes = [context.Process(target=_reindex, args=(site, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    counts = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(counts) == 30
    assert all(one[2] == "identifiers" for one in columns(site).values())


def test_killed_reader_holds_up_the_others_for_its_lease_only(site: Site) -> None:
    receive(site, "1.7")
    forget(site)
    with site.ledger() as ledger:
        assert ledger.reindexing.take_lease("dead", 0.3)
        assert not StudyReindexer(site.config, ledger, "b").run_step()
    progress = reindex_studies(site.config, lambda _: None, wait_seconds=10)
    assert progress.left == 0
