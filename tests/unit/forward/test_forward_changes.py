"""Attributes changed for one destination, by a forward worker and a remote over TLS."""

import errno
import io
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.support.drains import drain_once, open_worker, wait_until_due
from tests.support.forwarding import Forwarding
from tests.support.instances import CT, EXPLICIT, Made, element
from tests.support.peers import PynetdicomRemote


@dataclass(frozen=True)
class Patient(Made):
    """An instance of a patient, in a character set."""

    patient_id: bytes = b"4711"
    character_set: bytes = b""

    @property
    def data_set(self) -> bytes:
        head = element(0x0008, 0x0005, "CS", self.character_set) if self.character_set else b""
        whole = super().data_set
        at = whole.index(b"\x20\x00\x0d\x00")
        patient = element(0x0010, 0x0010, "PN", b"Planted^Eve") + element(
            0x0010, 0x0020, "LO", self.patient_id
        )
        return head + whole[:at] + patient + whole[at:]


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data), force=True)


def test_each_destination_gets_its_attributes_and_the_store_keeps_its_own(
    forwarding: Forwarding, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "map.csv"
    path.write_text("match:PatientID,PatientID,PatientName\n4711,A-1,Müller^Eva\n")
    large = Patient(sop="1.2.3.9", patient_id=b"0815", pixels=bytes(300_000))
    made = [Patient(sop="1.2.3.1"), Patient(sop="1.2.3.2", character_set=b"ISO_IR 144"), large]
    with (
        PynetdicomRemote([(CT, [EXPLICIT])], forwarding.tls) as changed,
        PynetdicomRemote([(CT, [EXPLICIT])], forwarding.tls) as plain,
    ):
        forwarding.add(
            changed.port, "changed", map=path, set={"InstitutionName": "Here"}, remove=("SeriesNumber",)
        )
        forwarding.add(plain.port, "plain")
        forwarding.record(*made, to=("changed", "plain"))
        drain_once(forwarding, "changed")
        drain_once(forwarding, "plain")
    assert forwarding.states("changed") == {"delivered": 2, "dead": 1}
    assert [stored.data_set for stored in plain.stored] == [one.data_set for one in made]
    assert [(forwarding.config.store_root / f"{one.sop}.dcm").read_bytes() for one in made] == [
        one.file for one in made
    ]
    arrived = {stored.sop_instance: read(stored.data_set) for stored in changed.stored}
    first, second = arrived["1.2.3.1"], arrived["1.2.3.9"]
    assert (first.PatientID, first.PatientName, first.InstitutionName) == ("A-1", "Müller^Eva", "Here")
    assert (second.PatientID, second.InstitutionName) == ("0815", "Here")
    assert second.PixelData == large.pixels
    [item] = first.OriginalAttributesSequence
    assert item.ModifiedAttributesSequence[0].PatientID == "4711"
    said = str(forwarding.row("1.2.3.1", "changed").last_error)
    assert said == (
        "changed for this destination: SpecificCharacterSet, InstitutionName, PatientName, PatientID"
    )
    refused = forwarding.row("1.2.3.2", "changed")
    assert "PatientName has characters that the character set" in str(refused.last_error)
    assert refused.attempts == 1
    assert forwarding.ledger.circuits.read_circuit("changed").failures == 0
    assert not any(name in caplog.text for name in ("4711", "Planted", "Müller", "A-1"))


def test_a_second_attempt_sends_the_same_bytes(plain: Forwarding) -> None:
    statuses = [0xA700, 0]
    seen: list[bytes] = []

    def answer(stored: object) -> int:
        seen.append(stored.data_set)  # type: ignore[attr-defined]
        return statuses[len(seen) - 1]

    with PynetdicomRemote([(CT, [EXPLICIT])], answer=answer) as remote:
        plain.add(remote.port, set={"PatientID": "NEW"}, retry_first_seconds=0.01)
        plain.record(Patient())
        with open_worker(plain) as worker:
            for _ in range(50):
                worker.drain_destination("pacs")
                if len(seen) == 2:
                    break
    assert seen[0] == seen[1]
    assert read(seen[0]).PatientID == "NEW"


def test_a_damaged_file_is_dead_with_its_reason_and_the_next_one_is_sent(plain: Forwarding) -> None:
    good, bad = Patient(sop="1.2.3.1"), Patient(sop="1.2.3.2", pixels=b"")

    with PynetdicomRemote([(CT, [EXPLICIT])]) as remote:
        plain.add(remote.port, set={"PatientID": "NEW"})
        plain.record(bad, good)
        path = plain.config.store_root / f"{bad.sop}.dcm"
        path.write_bytes(path.read_bytes()[:-12] + b"\xff" * 12)  # as long as the ledger says
        drain_once(plain)
    assert plain.states() == {"delivered": 1, "dead": 1}
    assert "its attributes cannot be changed: (FFFF,FFFF) has no VR" in str(plain.row(bad.sop).last_error)


def test_a_failing_disk_blames_no_instance(plain: Forwarding, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with PynetdicomRemote([(CT, [EXPLICIT])]) as remote:
        plain.add(remote.port, set={"PatientID": "NEW"}, retry_first_seconds=0.01)
        plain.record(Patient())
        with monkeypatch.context() as patched:
            patched.setattr("ingest.outgoing.data_set.read_range", fail)
            drain_once(plain)
        row = plain.row(Patient().sop)
        assert (row.state.value, row.attempts) == ("retry", 0)
        assert "its file cannot be read" in str(row.last_error)
        wait_until_due(plain, [Patient().sop])
        drain_once(plain)
    assert plain.states() == {"delivered": 1}
