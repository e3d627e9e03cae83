"""Transfer syntaxes that a remote is offered, and the data sets that it gets, over TLS."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from ingest.dicom.part10 import read_file_meta
from tests.support.drains import drain_once
from tests.support.forwarding import Forwarding
from tests.support.instances import CT, EXPLICIT, IMPLICIT, Made
from tests.support.peers import PynetdicomRemote, Stored

JPEG = "1.2.840.10008.1.2.4.50"
JPEG_LS = "1.2.840.10008.1.2.4.80"
BIG = "1.2.840.10008.1.2.2"


def read(stored: Stored) -> Dataset:
    meta = b"\0" * 128 + b"DICM\2\0\x10\0UI" + bytes([len(stored.transfer_syntax) + 1 & ~1, 0])
    meta += stored.transfer_syntax.encode() + b"\0" * (len(stored.transfer_syntax) & 1)
    return pydicom.dcmread(io.BytesIO(meta + stored.data_set), force=True)


@pytest.mark.parametrize(
    ("settings", "accepted", "sent"),
    [
        ({}, [IMPLICIT], {"explicit": IMPLICIT, "implicit": IMPLICIT}),
        ({}, [EXPLICIT, IMPLICIT], {"explicit": EXPLICIT, "implicit": IMPLICIT}),
        ({"preferred_transfer_syntax": BIG}, [IMPLICIT, BIG], {"explicit": BIG, "implicit": IMPLICIT}),
        (
            {"transcode": "always", "preferred_transfer_syntax": "ImplicitVRLittleEndian"},
            [EXPLICIT, IMPLICIT],
            {"explicit": IMPLICIT, "implicit": IMPLICIT},
        ),
    ],
)
def test_remote_gets_what_it_accepts_over_one_association(
    forwarding: Forwarding, settings: dict[str, str], accepted: list[str], sent: dict[str, str]
) -> None:
    made = {"explicit": Made(sop="1.2.3.1"), "implicit": Made(sop="1.2.3.2", syntax=IMPLICIT)}
    with PynetdicomRemote([(CT, accepted)], forwarding.tls) as remote:
        forwarding.add(remote.port, **{"transcode": "if-refused"} | settings)
        forwarding.record(*made.values())
        drain_once(forwarding)
    assert forwarding.states() == {"delivered": 2}
    assert remote.associations == 1
    arrived = {stored.sop_instance: stored for stored in remote.stored}
    for name, one in made.items():
        stored = arrived[one.sop]
        assert stored.transfer_syntax == sent[name]
        if stored.transfer_syntax == one.syntax:
            assert stored.data_set == one.data_set
            continue
        data_set = read(stored)
        assert data_set.PixelData == one.pixels
        assert (data_set.SOPInstanceUID, data_set.StudyInstanceUID) == (one.sop, one.study)
        keyword = {IMPLICIT: "ImplicitVRLittleEndian", BIG: "ExplicitVRBigEndian"}[sent[name]]
        assert forwarding.row(one.sop).last_error == f"sent in {keyword}"


def test_attributes_change_before_the_transfer_syntax_does(forwarding: Forwarding) -> None:
    with PynetdicomRemote([(CT, [IMPLICIT])], forwarding.tls) as remote:
        forwarding.add(remote.port, transcode="if-refused", set={"PatientID": "NEW"})
        forwarding.record(Made())
        drain_once(forwarding)
    [stored] = remote.stored
    assert read(stored).PatientID == "NEW"
    assert read(stored).PixelData == Made().pixels
    said = "changed for this destination: PatientID; sent in ImplicitVRLittleEndian"
    assert forwarding.row(Made().sop).last_error == said


def test_a_data_set_that_cannot_be_encoded_is_dead_with_its_reason(forwarding: Forwarding) -> None:
    """The remote refuses the transfer syntax of the one, and the other is damaged."""
    video, damaged, sound = (
        Made(sop="1.2.3.1", syntax=JPEG),
        Made(sop="1.2.3.2", pixels=b""),
        Made(sop="1.2.3.3"),
    )
    with PynetdicomRemote([(CT, [IMPLICIT])], forwarding.tls) as remote:
        forwarding.add(remote.port, transcode="if-refused")
        forwarding.record(video, damaged, sound)
        path = forwarding.config.store_root / f"{damaged.sop}.dcm"
        path.write_bytes(path.read_bytes()[:-12] + b"\xff" * 12)  # as long as the ledger says
        drain_once(forwarding)
    assert forwarding.states() == {"delivered": 1, "dead": 2}
    assert [stored.sop_instance for stored in remote.stored] == [sound.sop]
    said = str(forwarding.row(video.sop).last_error)
    assert said.startswith(f"no context accepted for {CT} in {JPEG}")
    said = str(forwarding.row(damaged.sop).last_error)
    assert said.startswith(
        "the remote refuses ExplicitVRLittleEndian, and the data set cannot be transcoded: "
    )
    assert "(FFFF,FFFF) has no VR" in said


def decode_jpeg_ls(stored: Stored) -> bytes:
    """The pixels of the only frame."""
    jpeg_ls = pytest.importorskip("jpeg_ls", reason="pyjpegls has no wheel for this Python")
    [frame] = generate_frames(read(stored).PixelData, number_of_frames=1)
    return bytes(jpeg_ls.decode_pixel_data(frame)[0])


@dataclass(frozen=True)
class Shipped:
    """A file of pydicom, as `Forwarding.record` takes it."""

    file: bytes
    data_set: bytes
    sop: str
    syntax: str
    study: str = "1.2.3"
    series: str = "1.2.3.1"

    @classmethod
    def read(cls, name: str, sop: str) -> "Shipped":
        path = Path(pydicom.__file__).parent / "data/test_files" / name
        with path.open("rb") as file:
            meta, offset = read_file_meta(file.fileno())
        data = path.read_bytes()
        return cls(data, data[offset:], sop, meta.transfer_syntax_uid)


def test_pixels_are_compressed_and_a_frame_that_no_codec_takes_costs_its_delivery_alone(
    forwarding: Forwarding,
) -> None:
    pytest.importorskip("jpeg_ls", reason="pyjpegls has no wheel for this Python")
    plain, rle = Shipped.read("CT_small.dcm", "1.2.3.1"), Shipped.read("MR_small_RLE.dcm", "1.2.3.2")
    at = rle.data_set.index(b"\xe0\x7f\x10\0OB") + 40  # within the RLE header of the only frame
    broken = replace(
        rle,
        sop="1.2.3.3",
        file=rle.file[: at - len(rle.data_set)] + b"\xff" * 24 + rle.file[at - len(rle.data_set) + 24 :],
    )
    with PynetdicomRemote([(CT, [JPEG_LS, EXPLICIT])], forwarding.tls) as remote:
        forwarding.add(remote.port, transcode="always", preferred_transfer_syntax="JPEGLSLossless")
        forwarding.record(broken, rle, plain)
        drain_once(forwarding)
    assert forwarding.states() == {"delivered": 2, "dead": 1}
    assert remote.associations == 1
    assert {stored.transfer_syntax for stored in remote.stored} == {JPEG_LS}
    said = str(forwarding.row(broken.sop).last_error)
    assert said.startswith("the remote refuses RLELossless, and the data set cannot be transcoded: its codec")
    assert forwarding.row(plain.sop).last_error == "sent in JPEGLSLossless"
    for stored in remote.stored:
        name = {plain.sop: "CT_small.dcm", rle.sop: "MR_small.dcm"}[stored.sop_instance]
        wanted = pydicom.dcmread(Path(pydicom.__file__).parent / "data/test_files" / name)
        assert decode_jpeg_ls(stored) == wanted.PixelData
