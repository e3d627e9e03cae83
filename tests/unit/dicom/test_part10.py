"""The File Meta that stands before every data set that is kept."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import data_store
import pydicom
import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.filereader import read_file_meta_info

from ingest.dicom import uids
from ingest.dicom.part10 import (
    FileMeta,
    encode_file_meta,
    format_presentation_address,
    is_part10,
    read_file_meta,
)
from ingest.errors import PeerError

META = FileMeta(
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.3.4",
    uids.EXPLICIT_LITTLE_ENDIAN,
    "CT1",
    "INGEST",
    format_presentation_address("10.0.0.1", 50000, tls=True),
    format_presentation_address("10.0.0.5", 2762, tls=True),
    ("ab" * 32, "CN=ct1,O=Zürich", "DNS:ct1.example.org"),
)
ELEMENT = b"\x08\x00\x16\x00UI\x04\x001.2\0"
Opener = Callable[[bytes], int]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """Writes bytes to a file and gives a descriptor of it."""
    descriptors = []

    def open_one(data: bytes) -> int:
        path = tmp_path / f"{len(descriptors)}.dcm"
        path.write_bytes(data)
        descriptors.append(os.open(path, os.O_RDONLY))
        return descriptors[-1]

    yield open_one
    for fd in descriptors:
        os.close(fd)


def in_memory(data: bytes) -> tuple[FileMeta, int]:
    fd = os.memfd_create("part10")
    try:
        os.write(fd, data)
        return read_file_meta(fd)
    finally:
        os.close(fd)


def test_pydicom_reads_every_element(tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(encode_file_meta(META) + ELEMENT)
    read = pydicom.dcmread(path)
    meta = read.file_meta
    assert read.preamble == bytes(128)
    assert meta.FileMetaInformationVersion == b"\0\1"
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (META.sop_class_uid, "1.2.3.4")
    assert meta.TransferSyntaxUID == uids.EXPLICIT_LITTLE_ENDIAN
    assert meta.ImplementationClassUID == uids.IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == uids.IMPLEMENTATION_VERSION
    assert (meta.SourceApplicationEntityTitle, meta.SendingApplicationEntityTitle) == ("CT1", "CT1")
    assert meta.ReceivingApplicationEntityTitle == "INGEST"
    assert meta.SourcePresentationAddress == "dicom-tls://10.0.0.1:50000"
    assert meta.ReceivingPresentationAddress == "dicom-tls://10.0.0.5:2762"
    assert meta.PrivateInformationCreatorUID == uids.IMPLEMENTATION_CLASS_UID
    assert meta.PrivateInformation.rstrip(b"\0").decode().split("\n") == list(META.certificate)
    assert meta.FileMetaInformationGroupLength == len(encode_file_meta(META)) - 144
    assert read.SOPClassUID == "1.2"
    assert [element.tag for element in meta] == sorted(element.tag for element in meta)


@pytest.mark.interop
def test_dcmdump_reads_it_without_a_warning(tmp_path: Path) -> None:
    if shutil.which("dcmdump") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("dcmdump is not installed")
        pytest.skip("dcmdump is not installed")
    path = tmp_path / "one.dcm"
    path.write_bytes(encode_file_meta(META) + ELEMENT)
    done = subprocess.run(["dcmdump", "+L", path], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    assert "[dicom-tls://10.0.0.1:50000]" in done.stdout
    assert "(0002,0018) AE [INGEST]" in done.stdout


def test_our_own_identification_obeys_the_standard() -> None:
    assert pydicom.uid.UID(uids.IMPLEMENTATION_CLASS_UID).is_valid
    assert 1 <= len(uids.IMPLEMENTATION_VERSION) <= 16


uid = st.lists(st.integers(0, 99999), min_size=1, max_size=8).map(lambda arcs: ".".join(map(str, arcs)))
title = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=16)


@given(st.builds(FileMeta, uid, uid, uid, title, title, st.none() | st.just("dicom://[::1]:104")))
def test_what_is_written_is_read(meta: FileMeta) -> None:
    data = encode_file_meta(meta)
    assert len(data) % 2 == 0
    assert in_memory(data + b"\x08\x00") == (meta, len(data))


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=40))
def test_no_value_of_a_peer_stops_the_writing(sop_instance: str, syntax: str, title: str) -> None:
    data = encode_file_meta(FileMeta("1.2", sop_instance, syntax, title, title, f"dicom://{syntax}"))
    assert int.from_bytes(data[140:144], "little") == len(data) - 144


def test_a_file_that_ends_with_its_file_meta_has_its_data_set_at_the_end(opened: Opener) -> None:
    data = encode_file_meta(META)
    assert read_file_meta(opened(data)) == (META, len(data))


def test_certificate_with_hundreds_of_names_keeps_the_first_ones(opened: Opener) -> None:
    names = ("ab" * 32, "CN=x", *(f"DNS:host-{n}.example.org" for n in range(500)))
    meta, _ = read_file_meta(opened(encode_file_meta(replace(META, certificate=names))))
    assert meta.certificate == names[: len(meta.certificate)]
    assert 40 < len(meta.certificate) < 100


@pytest.mark.parametrize("certificate", [(), META.certificate])
@pytest.mark.parametrize("priority", [0, 1, 2])
def test_priority_is_kept_beside_the_certificate_and_medium_costs_no_byte(
    priority: int, certificate: tuple[str, ...], opened: Opener
) -> None:
    plain = replace(META, certificate=certificate)
    data = encode_file_meta(replace(plain, priority=priority))
    meta, offset = read_file_meta(opened(data + ELEMENT))
    assert (meta.priority, meta.certificate, offset) == (priority, certificate, len(data))
    assert (data == encode_file_meta(plain)) is (priority == 0)


def test_private_information_of_somebody_else_is_no_certificate(opened: Opener) -> None:
    ours = encode_file_meta(META)
    uid = uids.IMPLEMENTATION_CLASS_UID.encode()
    at = ours.rindex(uid)
    theirs = ours[:at] + uid[:-1] + b"9" + ours[at + len(uid) :]
    assert read_file_meta(opened(theirs))[0].certificate == ()


def test_file_position_is_left_alone(opened: Opener) -> None:
    fd = opened(encode_file_meta(META))
    read_file_meta(fd)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0


def test_every_file_of_pydicom_gives_what_pydicom_gives() -> None:
    seen = 0
    roots = [Path(pydicom.data.__file__).parent, *(Path(path) for path in data_store.__path__)]
    for name in (name for root in roots for name in sorted(root.rglob("*"))):
        if not is_part10(name):
            continue
        theirs = read_file_meta_info(name)
        if "TransferSyntaxUID" not in theirs:
            continue
        fd = os.open(name, os.O_RDONLY)
        try:
            meta, offset = read_file_meta(fd)
        finally:
            os.close(fd)
        assert meta.transfer_syntax_uid == theirs.TransferSyntaxUID
        assert meta.sop_instance_uid == theirs.get("MediaStorageSOPInstanceUID", "")
        assert meta.calling_ae == theirs.get("SourceApplicationEntityTitle", "").strip()
        length = theirs.get("FileMetaInformationGroupLength")
        assert length is None or offset == 144 + length
        seen += 1
    assert seen > 50


def test_a_deflated_data_set_that_begins_like_group_2_is_not_taken_for_file_meta(opened: Opener) -> None:
    data = encode_file_meta(META)
    assert read_file_meta(opened(data + b"\x02\x00\xff\xffUI\xff\xff"))[1] == len(data)


@pytest.mark.parametrize("length", [None, 0xFFFF, 3])
def test_a_missing_or_wrong_group_length_does_not_matter(opened: Opener, length: int | None) -> None:
    data = encode_file_meta(META)
    changed = (
        data[:132] + data[144:] if length is None else data[:140] + length.to_bytes(4, "little") + data[144:]
    )
    assert read_file_meta(opened(changed + ELEMENT)) == (META, len(changed))


def test_private_information_may_be_longer_than_the_first_read(opened: Opener) -> None:
    plain = replace(META, certificate=())
    data = encode_file_meta(plain)
    private = (
        b"\x02\x00\x00\x01UI\x04\x001.2\0"
        + b"\x02\x00\x02\x01OB\0\0"
        + (300000).to_bytes(4, "little")
        + bytes(300000)
    )
    changed = data[:132] + data[144:] + private
    assert read_file_meta(opened(changed + ELEMENT)) == (plain, len(changed))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(132),
        bytes(128) + b"DICM",
        bytes(128) + b"DICM" + ELEMENT,  # no group 0002: no transfer syntax
        encode_file_meta(META)[:-1],
        encode_file_meta(META)[:150],
        bytes(128) + b"DICM\x02\x00\x10\x00\x04\x00\x00\x001.2\0",  # Implicit VR
        bytes(128) + b"DICM\x00\x02\x00\x10UI\x00\x041.2\0",  # big endian
        bytes(128) + b"DICM\x02\x00\x02\x01OB\x00\x00\xff\xff\xff\xff",  # undefined length
        bytes(128) + b"DICM\x02\x00\x02\x01OB\x00\x00\x00\x00\x00\x08",  # beyond the file, and too long
        bytes(128) + b"DICM\x02\x00\x10\x00UI\x00",
        bytes(128) + b"DICM\x02\x00\x02\x01OB\x00\x00\x00",
    ],
)
def test_what_is_no_file_meta_is_a_peer_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        in_memory(data)


@given(st.integers(0, 400), st.binary(max_size=8))
def test_any_damage_gives_a_value_or_a_peer_error(at: int, noise: bytes) -> None:
    data = encode_file_meta(META) + ELEMENT
    damaged = data[:at] + noise + data[at + len(noise) :]
    try:
        _, offset = in_memory(damaged)
    except PeerError:
        return
    assert 132 <= offset <= len(damaged)


def test_presentation_addresses_are_uris() -> None:
    assert format_presentation_address("10.0.0.1", 104, tls=False) == "dicom://10.0.0.1:104"
    assert format_presentation_address("2001:db8::1", 2762, tls=True) == "dicom-tls://[2001:db8::1]:2762"


def test_only_regular_files_with_the_prefix_are_part_10(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(encode_file_meta(META))
    short = tmp_path / "short"
    short.write_bytes(b"DICM")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it would wait for a writer
    assert is_part10(good)
    assert not any(map(is_part10, (short, pipe, tmp_path, tmp_path / "none", "a\0b")))
