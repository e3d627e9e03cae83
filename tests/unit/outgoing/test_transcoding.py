"""Data sets in another transfer syntax: pydicom and DCMTK read the same values from them."""

import itertools
import struct
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from ingest.codecs.pool import CodecPool
from ingest.dicom.part10 import FileMeta, encode_file_meta, read_file_meta
from ingest.dicom.transcoding import (
    DECODED,
    ENCODED,
    NATIVE,
    TARGETS,
    TranscodeMode,
    TranscodingRule,
    can_transcode,
    find_target,
)
from ingest.errors import RewriteError
from ingest.outgoing.data_set import FileParts
from ingest.outgoing.plan import OutgoingPlan
from ingest.outgoing.transcoding import Transcoding
from tests.support.properties import examples
from tests.unit.outgoing.test_coercion import TRUNCATED, read, shipped_files, stored_at

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
JPEG_LS, JPEG_2000, RLE = ENCODED
JPEG_LL = "1.2.840.10008.1.2.4.70"
RULE = TranscodingRule(TranscodeMode.IF_REFUSED)


def convert(path: Path, *accepted: str) -> bytes | None:
    """A file in the first of these transfer syntaxes that it can be in; None if it is sent as it is."""
    with stored_at(path) as stored:
        made = OutgoingPlan((), Transcoding(RULE, CodecPool(1))).make_data_set(stored, accepted=accepted)
        if made is None:
            return None
        parts = FileParts(stored.fd, made.parts)
        assert made.length in {None, parts.length}
        data = parts.read(0, parts.length)
        assert made.transfer_syntax_uid == DEFLATED or len(data) % 2 == 0
        meta = FileMeta(made.sop_class_uid, made.sop_instance_uid, made.transfer_syntax_uid, "A", "B", None)
        return encode_file_meta(meta) + data


def syntax_of(path: Path) -> str:
    with path.open("rb") as file:
        return read_file_meta(file.fileno())[0].transfer_syntax_uid


def native_files() -> list[Path]:
    return [path for path in shipped_files() if syntax_of(path) in NATIVE]


def write(path: Path, data: bytes | None) -> Path:
    assert data is not None
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("mode", "preferred", "stored", "offers"),
    [
        ("never", "", EXPLICIT, [EXPLICIT]),
        ("if-refused", "", EXPLICIT, [EXPLICIT, IMPLICIT]),
        ("if-refused", "", BIG, [BIG, EXPLICIT, IMPLICIT]),
        ("if-refused", DEFLATED, IMPLICIT, [IMPLICIT, DEFLATED, EXPLICIT]),
        ("always", IMPLICIT, EXPLICIT, [IMPLICIT, EXPLICIT]),
        ("always", IMPLICIT, IMPLICIT, [IMPLICIT, EXPLICIT]),
        ("always", IMPLICIT, JPEG, [JPEG]),
        ("if-refused", "", "1.2.840.10008.1.2.4.102", ["1.2.840.10008.1.2.4.102"]),  # video
        ("if-refused", "", JPEG_LS, [JPEG_LS, EXPLICIT, IMPLICIT]),
        ("if-refused", JPEG_2000, JPEG_LL, [JPEG_LL, JPEG_2000, EXPLICIT, IMPLICIT]),
        ("if-refused", BIG, RLE, [RLE, EXPLICIT, IMPLICIT]),
        ("always", JPEG_LS, DEFLATED, [JPEG_LS, DEFLATED, EXPLICIT, IMPLICIT]),
    ],
)
def test_offer_names_what_can_be_sent(mode: str, preferred: str, stored: str, offers: list[str]) -> None:
    assert list(TranscodingRule(TranscodeMode(mode), preferred, DECODED).list_offers(stored)) == offers


def test_offer_without_codecs_has_native_syntaxes_only() -> None:
    rule = TranscodingRule(TranscodeMode.ALWAYS, JPEG_LS)
    assert [rule.list_offers(stored) for stored in (EXPLICIT, JPEG_LS)] == [(EXPLICIT, IMPLICIT), (JPEG_LS,)]


@given(
    st.sampled_from(TranscodeMode),
    st.sampled_from(["", *TARGETS]),
    st.sampled_from([*TARGETS, *DECODED, JPEG, "1.2.840.10008.1.2.4.102", "1.2.3"]),
    st.sets(st.sampled_from(sorted(DECODED))),
)
@examples(200)
def test_offer_always_has_the_stored_syntax_once_and_nothing_that_cannot_be_made(
    mode: TranscodeMode, preferred: str, stored: str, codecs: set[str]
) -> None:
    offers = TranscodingRule(mode, preferred, frozenset(codecs)).list_offers(stored)
    assert offers.count(stored) == 1
    assert len(set(offers)) == len(offers)
    assert all(each == stored or can_transcode(stored, each, codecs) for each in offers)
    assert all(each == stored or each in NATIVE or each in codecs for each in offers)
    assert mode is not TranscodeMode.IF_REFUSED or offers[0] == stored


def test_target_has_a_uid_or_a_keyword() -> None:
    assert [find_target(text) for text in (IMPLICIT, "ExplicitVRBigEndian", "JPEG", "")] == [
        IMPLICIT,
        BIG,
        None,
        None,
    ]


def values_of(data_set: Dataset) -> list[str]:
    """The values of a data set as texts, without group lengths; bytes of pixels are compared apart."""
    shown = []
    for each in data_set.iterall():
        if each.tag.element and each.keyword not in {"LengthToEnd", "PixelData"}:
            value = "" if each.VR == "SQ" else repr(each.value)
            shown.append(f"{each.tag} {each.VR} {value}")
    return shown


@pytest.mark.filterwarnings("ignore")
def test_pydicom_reads_every_shipped_file_as_before_in_each_transfer_syntax(tmp_path: Path) -> None:
    refused, order_differs, count = set(), set(), 0
    for path in native_files():
        before = read(path.read_bytes())
        for target in (EXPLICIT, IMPLICIT, BIG, DEFLATED):
            if target == syntax_of(path):
                assert convert(path, target) is None
                continue
            try:
                made = convert(path, target)
            except RewriteError as error:
                (order_differs if "byte order of pixels" in str(error) else refused).add(path.name)
                continue
            after = read(made or b"")
            assert after.file_meta.TransferSyntaxUID == target
            if IMPLICIT not in {target, syntax_of(path)} and BIG not in {target, syntax_of(path)}:
                assert values_of(after) == values_of(before), (path.name, target)
            back = convert(write(tmp_path / "made", made), EXPLICIT)
            direct = convert(path, EXPLICIT) or path.read_bytes()
            if target != IMPLICIT:  # which forgets the VRs of private elements
                again = read(back or made or b"")
                assert values_of(again) == values_of(read(direct)), (path.name, target)
                assert again.get("PixelData") == read(direct).get("PixelData"), (path.name, target)
            count += 1
    assert refused == TRUNCATED | {"DICOMDIR-nooffset"}
    assert order_differs == {
        "badVR.dcm",
        "rtdose.dcm",
        "rtdose_1frame.dcm",
        "rtdose_expb.dcm",
        "rtdose_expb_1frame.dcm",
    }
    assert count > 200


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_dcmtk_converts_to_the_same_values(tmp_path: Path) -> None:
    """DCMTK converts too, and the dumps of both results are equal."""
    options = {EXPLICIT: "+te", IMPLICIT: "+ti", BIG: "+tb"}
    compared = 0
    for path, target in itertools.product(native_files(), options):
        try:
            made = convert(path, target) if target != syntax_of(path) else None
        except RewriteError:
            continue
        if made is None:
            continue
        ours, theirs = write(tmp_path / "ours.dcm", made), tmp_path / "theirs.dcm"
        if run_dcmconv(options[target], path, theirs):
            continue  # DCMTK refuses the file
        both = []
        for one in (ours, theirs):
            assert not run_dcmconv("+te", one, tmp_path / "again.dcm")
            with (tmp_path / "again.dcm").open("rb") as file:
                offset = read_file_meta(file.fileno())[1]
            both.append((tmp_path / "again.dcm").read_bytes()[offset:])
        assert both[0] == both[1], (path.name, target)
        compared += 1
    assert compared > 150


def run_dcmconv(option: str, path: Path, target: Path) -> int:
    """Convert without group lengths and lengths of sequences; returns the exit code."""
    command = ["dcmconv", "-q", option, "-g", "-e", str(path), str(target)]
    return subprocess.run(command, check=False, timeout=60, capture_output=True).returncode


def encode(order: str, tag: int, vr: str, value: bytes) -> bytes:
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if vr in {"OB", "OW", "OL", "OD", "UN", "SQ"}:
        return head + vr.encode() + b"\0\0" + struct.pack(order + "L", len(value)) + value
    return head + vr.encode() + struct.pack(order + "H", len(value)) + value


def make_file(path: Path, syntax: str, *elements: bytes) -> Path:
    meta = FileMeta("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", syntax, "A", "B", None)
    path.write_bytes(encode_file_meta(meta) + b"".join(elements))
    return path


def test_each_vr_changes_the_order_of_its_own_words(tmp_path: Path) -> None:
    numbers = {
        ("AT", 0x0028_0009): "<HH",
        ("US", 0x0028_0010): "<H",
        ("UL", 0x0028_1401): "<L",
        ("FL", 0x0018_9073): "<f",
        ("FD", 0x0018_9074): "<d",
        ("OB", 0x0042_0011): "4s",
        ("OD", 0x0070_150D): "<dd",
        ("OL", 0x0066_0040): "<LL",
        ("OW", 0x7FE0_0010): "<HHH",
    }
    wanted = {}
    elements = [[], []]
    for (vr, tag), layout in numbers.items():
        fields = [b"abcd"] if vr == "OB" else [1 + each for each in range(len(layout) - 1)]
        wanted[tag] = fields
        for index, order in enumerate("<>"):
            elements[index].append(encode(order, tag, vr, struct.pack(layout.replace("<", order), *fields)))
    ordered = [
        b"".join(x for _, x in sorted(zip(sorted(t for _, t in numbers), each, strict=True)))
        for each in elements
    ]
    little, big = (
        make_file(tmp_path / "little", EXPLICIT, ordered[0]),
        make_file(tmp_path / "big", BIG, ordered[1]),
    )
    assert (convert(little, BIG) or b"").endswith(ordered[1])
    assert (convert(big, EXPLICIT) or b"").endswith(ordered[0])
    damaged = make_file(tmp_path / "damaged", BIG, encode(">", 0x7FE0_0010, "OW", b"abc"))
    with pytest.raises(RewriteError, match="no whole words"):
        convert(damaged, EXPLICIT)


def test_a_long_value_is_sent_from_the_file(tmp_path: Path) -> None:
    size = 1 << 26
    head = b"".join(
        (
            encode("<", 0x0028_0103, "US", b"\1\0"),
            encode("<", 0x0028_0106, "SS", b"\xff\xff"),
            b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<L", size),
        )
    )
    path = make_file(tmp_path / "large", EXPLICIT, head)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    with stored_at(path) as stored:
        tracemalloc.start()
        try:
            for target in (IMPLICIT, BIG, DEFLATED):
                made = OutgoingPlan((), Transcoding(RULE, CodecPool(1))).make_data_set(
                    stored, accepted=[target]
                )
                assert made is not None
                for _ in made.parts:
                    pass
            assert tracemalloc.get_traced_memory()[1] < 1 << 21
        finally:
            tracemalloc.stop()


def test_a_data_set_that_cannot_be_encoded_takes_the_next_accepted_syntax(tmp_path: Path) -> None:
    """A value of 64 KiB fits into no short VR, and UN has no byte order of its own."""
    value = b"1\\" * (1 << 15)
    path = make_file(tmp_path / "long", IMPLICIT, struct.pack("<HHL", 0x0018, 0x1164, len(value)) + value)
    with pytest.raises(RewriteError, match=r"refuses ImplicitVRLittleEndian.*too long for its VR"):
        convert(path, BIG)
    assert convert(path, BIG, IMPLICIT) is None
    made = read(convert(path, BIG, EXPLICIT) or b"")
    assert made.get_item(0x0018_1164).VR in {"UN", "DS"}


def test_ambiguous_vrs_follow_pixel_representation_also_in_items(tmp_path: Path) -> None:
    def implicit(tag: int, value: bytes) -> bytes:
        return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value

    lut = implicit(0xFFFE_E000, implicit(0x0028_3002, b"\1\0\xff\xff\x10\0"))
    for number, vr in ((0, "US"), (1, "SS")):
        path = make_file(
            tmp_path / "ambiguous",
            IMPLICIT,
            implicit(0x0028_0103, struct.pack("<H", number)),
            implicit(0x0028_0106, b"\xff\xff"),
            implicit(0x0028_3010, lut),
        )
        made = convert(path, EXPLICIT) or b""
        after = read(made)
        assert vr == after.get_item(0x0028_0106).VR
        assert vr == after.VOILUTSequence[0].get_item(0x0028_3002).VR
        assert b"\x28\x00\x06\x01" + vr.encode() in made
