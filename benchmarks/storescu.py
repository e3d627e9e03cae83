"""DCMTK's storescu as the sender: a real SCU with its own defaults, one image after another."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from benchmarks.load import LoadError
from benchmarks.peers import find_program
from benchmarks.receivers import Target

SECONDS = 300
ROWS = 512


@dataclass(frozen=True, slots=True)
class Files:
    """What it sends.

    Attributes:
        folder: Holds the files and nothing else.
        uids: Their SOP instance UIDs.
        data_bytes: Of all data sets.
    """

    folder: Path
    uids: tuple[str, ...]
    data_bytes: int

    @classmethod
    @contextlib.contextmanager
    def made(cls, folder: Path, size: int, count: int) -> Iterator[Self]:
        """CT images of about `size` bytes each; removed at the end."""
        folder.mkdir(parents=True)
        root = f"2.25.{time.time_ns()}"
        columns = size // (2 * ROWS)
        uids = tuple(f"{root}.{number + 1}" for number in range(count))
        try:
            for uid in uids:
                _write(folder / f"{uid}.dcm", uid, root, columns)
            yield cls(folder, uids, 2 * ROWS * columns * count)
        finally:
            shutil.rmtree(folder)


def send(files: Files, target: Target) -> float:
    """Send all of it; returns the seconds from the program's start to its end.

    Raises:
        Unavailable: storescu is not on the PATH.
        LoadError: It did not deliver everything.
    """
    command = [find_program("storescu", lambda path: b"dcm4che" not in path.read_bytes())]
    if target.certificate is not None:
        command += ["+tls", str(target.key), str(target.certificate), "+cf", str(target.trusted)]
    command += ["-aet", target.calling_ae, "-aec", target.called_ae, target.host, str(target.port)]
    # Its defaults decide: with this variable it would switch Nagle's algorithm off.
    environment = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"}
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "+sd", str(files.folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        timeout=SECONDS,
        check=False,
    )
    seconds = time.perf_counter() - begun
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace")[-2000:]
        raise LoadError(f"storescu ended with {done.returncode}:\n{said}")
    return seconds


def _write(path: Path, uid: str, root: str, columns: int) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uid)
    image = Dataset()
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, uid
    image.StudyInstanceUID, image.SeriesInstanceUID = root, f"{root}.0"
    image.Modality, image.PatientID, image.PatientName = "CT", "BENCHMARK", "Benchmark"
    image.Rows, image.Columns = ROWS, columns
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.PixelData = bytes(2 * ROWS * columns)
    image.save_as(path, enforce_file_format=True)
