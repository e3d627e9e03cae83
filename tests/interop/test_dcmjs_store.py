"""dcmjs-dimse proposes Implicit VR Little Endian first and drops what it has in Explicit if that is taken."""

import os
import subprocess
from pathlib import Path

import pytest
from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from tests.interop.callers import DCMJS
from tests.support.nodes import Node, eventually
from tests.support.peers import require_program

CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTAXES = (ExplicitVRLittleEndian, RLELossless, ExplicitVRLittleEndian)


def made(folder: Path, number: int, syntax: str) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CT, syntax
    instance = Dataset()
    instance.SOPClassUID, instance.SOPInstanceUID = CT, generate_uid()
    instance.StudyInstanceUID = instance.SeriesInstanceUID = "1.2.3"
    instance.Modality, instance.InstanceNumber = "CT", number
    meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    instance.file_meta = meta
    path = folder / f"{number}.dcm"
    dcmwrite(path, instance, enforce_file_format=True)
    return path


def test_sender_without_codecs_gets_all_its_files_stored(shared_node: Node, tmp_path: Path) -> None:
    if not (DCMJS / "node_modules" / "dcmjs-dimse").is_dir():
        reason = "dcmjs-dimse is not installed; run npm ci in tests/interop/dcmjs"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    files = [made(tmp_path, number, syntax) for number, syntax in enumerate(SYNTAXES)]
    command = [
        require_program("node"),
        str(DCMJS / "store.js"),
        str(shared_node.plain_port),
        *map(str, files),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    answers = [line for line in done.stdout.splitlines() if line.startswith("/")]
    assert answers == [f"{file} 0" for file in files], done.stdout + done.stderr
    uids = {str(dcmread(file).SOPInstanceUID) for file in files}
    eventually(lambda: uids <= shared_node.stored().keys(), what="all instances")
    syntaxes = {str(dcmread(shared_node.stored()[uid]).file_meta.TransferSyntaxUID) for uid in uids}
    assert syntaxes == {ExplicitVRLittleEndian, RLELossless}
