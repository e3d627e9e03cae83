"""Reading a spooled file that is cut short meanwhile: an error comes of it, never a signal."""

import os
from pathlib import Path

import pytest

from ingest.dicom.file_header import read_instance_header
from ingest.errors import PeerError
from tests.support.instances import CT, Made, element


def long_before_its_uids(pixels: int) -> bytes:
    made = Made(pixels=bytes(pixels))
    head = element(0x0008, 0x0016, "UI", CT.encode()) + element(0x0008, 0x0018, "UI", b"1.2.3.4")
    private = element(0x0009, 0x0010, "LO", b"PRIVATE") + element(0x0009, 0x1000, "OB", bytes(300_000))
    return made.meta + head + private + made.data_set[len(head) :]


def identified(path: Path, *, size: int) -> int:
    """How a process ended that identifies a file which is cut to `size` bytes after it was opened."""
    pid = os.fork()
    if pid == 0:
        fd = os.open(path, os.O_RDONLY)
        length = os.fstat(fd).st_size
        os.truncate(path, size)
        try:
            read_instance_header(fd, length)
        except (OSError, PeerError):
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("size", [0, 100, 5000, 20_000, 100_000, 300_000])
def test_a_file_that_is_cut_short_while_it_is_read_is_an_error(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file.dcm"
    path.write_bytes(long_before_its_uids(10))
    assert identified(path, size=size) == 3


def test_uids_behind_long_elements_are_found_without_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "file.dcm"
    path.write_bytes(long_before_its_uids(2_000_000))
    with path.open("rb") as file:
        header = read_instance_header(file.fileno(), path.stat().st_size)
    assert (header.study_uid, header.series_uid) == ("1.2.3", "1.2.3.1")
