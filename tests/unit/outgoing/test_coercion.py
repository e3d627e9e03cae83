"""Attributes changed on the way out: pydicom reads what was asked for, and the rest as it was stored."""

import contextlib
import importlib.util
import io
import os
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from ingest.config.attribute_map import AttributeMap
from ingest.config.attribute_values import parse_attribute, parse_new_value
from ingest.dicom.part10 import read_file_meta
from ingest.errors import PeerError, RewriteError
from ingest.outgoing.attributes import WantedChanges, decide_changes
from ingest.outgoing.coercion import Coercion
from ingest.outgoing.data_set import FileParts, OutgoingDataSet
from ingest.outgoing.plan import OutgoingPlan, StoredDataSet
from tests.support.properties import examples

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
STORED_AT = 1_764_547_200_123
PATIENT_ID, PATIENT_NAME, CHARACTER_SET = 0x0010_0020, 0x0010_0010, 0x0008_0005
TRUNCATED = {"MR_truncated.dcm", "rtplan_truncated.dcm"}


def wanted(remove: tuple[str, ...] = (), *, keeps: bool = True, **values: object) -> WantedChanges:
    return WantedChanges(
        tuple(parse_new_value(name, value) for name, value in values.items()),
        frozenset(parse_attribute(name)[0] for name in remove),
        keeps_originals=keeps,
        system="NODE",
    )


@contextlib.contextmanager
def stored_at(path: Path) -> Iterator[StoredDataSet]:
    fd = os.open(path, os.O_RDONLY)
    try:
        meta, offset = read_file_meta(fd)
        yield StoredDataSet(
            fd,
            offset,
            os.fstat(fd).st_size - offset,
            meta.sop_class_uid,
            meta.sop_instance_uid,
            meta.transfer_syntax_uid,
            STORED_AT,
        )
    finally:
        os.close(fd)


def rewrite(path: Path, changes: WantedChanges) -> bytes | None:
    """The changed data set with the File Meta of the stored one; None if it is sent as it is stored."""
    with stored_at(path) as stored:
        made = OutgoingPlan((Coercion(changes),)).make_data_set(stored)
        if made is None:
            return None
        parts = FileParts(stored.fd, made.parts)
        assert made.length in {None, parts.length}
        if made.transfer_syntax_uid != DEFLATED:
            assert parts.length % 2 == 0
        return os.pread(stored.fd, stored.offset, 0) + parts.read(0, parts.length)


def read(data: bytes) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(io.BytesIO(data), force=True)


def make_file(path: Path, syntax: str = EXPLICIT, *, odd: bool = False, **values: object) -> Path:
    """A small instance with a nested data set, old group lengths, private attributes and pixels."""
    data_set = Dataset()
    data_set.SOPClassUID, data_set.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    data_set.PatientName, data_set.PatientID = "Old^Name", "OLD"
    data_set.InstitutionName = "Here"
    inner = Dataset()
    inner.PatientID = "INNER"
    data_set.ReferencedPatientSequence = Sequence([inner])
    data_set.private_block(0x0011, "OWNER", create=True).add_new(1, "LO", "secret")
    data_set.Rows = 2
    data_set.add_new(0x7FE0_0010, "OB" if syntax == JPEG else "OW", bytes(range(8)))
    if syntax == JPEG:
        data_set.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    for name, value in values.items():
        setattr(data_set, name, value)
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = syntax
    target = io.BytesIO()
    data_set.save_as(target, enforce_file_format=True)
    data = target.getvalue()
    # Old systems write them, and pydicom does not: group lengths, and Length to End.
    order, is_implicit = ">" if syntax == BIG else "<", syntax == IMPLICIT
    if syntax != DEFLATED:
        heads = [
            struct.pack(order + "HH", group, element)
            + (struct.pack("<L", 4) if is_implicit else b"UL" + struct.pack(order + "H", 4))
            + bytes(4)
            for group, element in ((8, 0), (8, 1), (0x28, 0))
        ]
        first, rows = struct.pack(order + "HH", 8, 0x16), struct.pack(order + "HH", 0x28, 0x10)
        at = data.index(first, data.index(b"DICM") + 4)
        data = data[:at] + heads[0] + heads[1] + data[at:]
        at = data.index(rows + (b"\2\0" if is_implicit else b"US"), at)
        data = data[:at] + heads[2] + data[at:]
    if odd:
        # A value that its sender did not pad: the last one, so that the length of the data set is odd.
        data += b"\xfc\xff\xfc\xffOB\0\0\1\0\0\0\0"
    path.write_bytes(data)
    return path


def without(data_set: Dataset, *names: str) -> list[pydicom.DataElement]:
    """The elements but for these, the group lengths and the Original Attributes Sequence."""
    left_out = {"OriginalAttributesSequence", "LengthToEnd", *names}
    return [each for each in data_set if each.tag.element and each.keyword not in left_out]


def shipped_files() -> list[Path]:
    spec = importlib.util.find_spec("pydicom")
    assert spec is not None
    assert spec.origin is not None
    found = []
    for path in sorted((Path(spec.origin).parent / "data").rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                try:
                    read_file_meta(file.fileno())
                except PeerError:
                    continue
            found.append(path)
    return found


@pytest.mark.filterwarnings("ignore")
def test_every_shipped_file_is_read_with_the_changes_and_otherwise_as_before() -> None:
    changes = wanted(("PatientBirthDate", "StudyDescription"), PatientID="NEW", AccessionNumber="")
    changed_names = "PatientID", "AccessionNumber", "PatientBirthDate", "StudyDescription"
    refused, count = set(), 0
    for path in shipped_files():
        try:
            made = rewrite(path, changes)
        except RewriteError:
            refused.add(path.name)
            continue
        assert made is not None
        before, after = read(path.read_bytes()), read(made)
        assert (after.PatientID, after.AccessionNumber) == ("NEW", "")
        assert "PatientBirthDate" not in after
        assert "StudyDescription" not in after
        [*earlier, item] = after.OriginalAttributesSequence
        assert earlier == list(before.get("OriginalAttributesSequence", []))
        [previous] = item.ModifiedAttributesSequence
        for name in changed_names:
            assert previous.get(name, "") == before.get(name, ""), path.name
        kept = [str(each) for each in without(before, *changed_names)]
        assert [str(each) for each in without(after, *changed_names)] == kept, path.name
        count += 1
    assert refused == TRUNCATED | {"SC_rgb_jpeg.dcm"}
    assert count > 150


@pytest.mark.parametrize(
    ("syntax", "odd"),
    [(IMPLICIT, False), (EXPLICIT, False), (EXPLICIT, True), (BIG, False), (DEFLATED, False), (JPEG, True)],
)
def test_each_encoding_gets_its_changes_and_one_item_of_originals(
    tmp_path: Path, syntax: str, odd: bool
) -> None:
    path = make_file(tmp_path / "stored", syntax, odd=odd)
    bytes_before = path.read_bytes()
    changes = wanted(("0011,1001", "InstitutionName"), PatientID="N1", RecognizableVisualFeatures="NO")
    made = rewrite(path, changes)
    assert made is not None
    assert rewrite(path, changes) == made  # a retry sends the same bytes
    assert path.read_bytes() == bytes_before
    after = read(made)
    assert after.PatientID == "N1"
    assert after.PatientName == "Old^Name"
    assert after.ReferencedPatientSequence[0].PatientID == "INNER"
    assert after.PixelData == read(bytes_before).PixelData
    gone = {0x0008_0000, 0x0008_0001, 0x0008_0080, 0x0011_1001, 0x0028_0000}
    assert gone.isdisjoint(map(int, after.keys()))
    if syntax != DEFLATED:
        assert gone <= set(map(int, read(bytes_before).keys()))
    [item] = after.OriginalAttributesSequence
    assert item.AttributeModificationDateTime == "20251201000000.123+0000"
    assert (item.ModifyingSystem, item.SourceOfPreviousValues) == ("NODE", "")
    assert item.ReasonForTheAttributeModification == "COERCE"
    [previous] = item.ModifiedAttributesSequence
    found = {each.tag: each.value for each in previous}
    # In Implicit VR pydicom takes a private value for bytes.
    secret = b"secret" if syntax == IMPLICIT else "secret"
    assert found == {
        0x0008_0080: "Here",
        0x0010_0020: "OLD",
        0x0011_0010: "OWNER",
        0x0011_1001: secret,
        0x0028_0302: "",
    }
    again = tmp_path / "again"
    again.write_bytes(made)
    assert rewrite(again, changes) is None  # everything has its value already


def test_further_changes_append_an_item_whatever_the_length_of_the_sequence(tmp_path: Path) -> None:
    for is_undefined in (False, True):
        first = Dataset()
        first.ModifyingSystem = "BEFORE"
        originals = Sequence([first])
        originals.is_undefined_length = is_undefined
        path = make_file(tmp_path / "stored", OriginalAttributesSequence=originals)
        made = rewrite(path, wanted(PatientID="N1"))
        assert made is not None
        systems = [item.ModifyingSystem for item in read(made).OriginalAttributesSequence]
        assert systems == ["BEFORE", "NODE"]
    made = rewrite(path, wanted(PatientID="N1", keeps=False))
    assert made is not None
    assert [item.ModifyingSystem for item in read(made).OriginalAttributesSequence] == ["BEFORE"]


def test_text_is_written_in_the_character_set_of_the_data_set_or_refused(tmp_path: Path) -> None:
    path = make_file(tmp_path / "stored")
    for character_set in ("ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 100"]):
        make_file(path, SpecificCharacterSet=character_set)
        made = rewrite(path, wanted(PatientName="Müller^Jörg"))
        assert made is not None
        assert (read(made).PatientName, read(made).SpecificCharacterSet) == ("Müller^Jörg", character_set)
    make_file(path, SpecificCharacterSet="ISO_IR 144", PatientName="Иван")
    with pytest.raises(RewriteError, match=r"PatientName has characters .* \(ISO_IR 144\) lacks") as refusal:
        rewrite(path, wanted(PatientName="Müller"))
    assert "Müller" not in str(refusal.value)


def test_ascii_data_set_becomes_utf_8_for_a_value_that_needs_it(tmp_path: Path) -> None:
    path = make_file(tmp_path / "stored")
    made = rewrite(path, wanted(PatientName="山田^太郎"))
    assert made is not None
    after = read(made)
    assert (after.PatientName, after.SpecificCharacterSet) == ("山田^太郎", "ISO_IR 192")
    assert "SpecificCharacterSet" in after.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
    # Latin-1 without a character set would no longer be readable.
    path.write_bytes(path.read_bytes().replace(b"Here", b"H\xe9r\xe9"))
    with pytest.raises(RewriteError, match="ASCII"):
        rewrite(path, wanted(PatientName="山田^太郎"))


def test_elements_out_of_order_and_twice_are_found(tmp_path: Path) -> None:
    path = make_file(tmp_path / "stored")
    late = b"\x10\x00\x20\x00LO\x04\x00LATE"
    path.write_bytes(path.read_bytes() + late)
    made = rewrite(path, wanted(("PatientID",)))
    assert made is not None
    assert b"LATE" not in made.partition(b"NODE")[2]
    made = rewrite(path, wanted(PatientID="N1"))
    assert made is not None
    assert made.count(b"\x10\x00\x20\x00LO\x02\x00N1") == 1
    assert not made.endswith(late)


def test_a_sequence_that_cannot_be_continued_is_refused(tmp_path: Path) -> None:
    path = make_file(tmp_path / "stored", OriginalAttributesSequence=Sequence([Dataset()]))
    data = path.read_bytes()
    tag = b"\x00\x04\x61\x05"
    path.write_bytes(data.replace(tag + b"SQ", tag + b"UN"))
    with pytest.raises(RewriteError, match="its Original Attributes Sequence has VR UN"):
        rewrite(path, wanted(PatientID="N1"))
    assert rewrite(path, wanted(PatientID="N1", keeps=False)) is not None
    # A sequence of undefined length at the end, without its delimiter: another element would become its own.
    path = make_file(tmp_path / "open")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"\xe0\x7f")] + b"\x00\x52\x29\x92SQ\0\0" + b"\xff" * 4)
    assert rewrite(path, wanted(PatientID="N1")) is not None
    with pytest.raises(RewriteError, match="SharedFunctionalGroupsSequence ends without its delimiter"):
        rewrite(path, wanted(("SharedFunctionalGroupsSequence",)))
    with pytest.raises(RewriteError, match="SharedFunctionalGroupsSequence ends without its delimiter"):
        rewrite(path, wanted(WaveformSampleInterpretation="SB", keeps=False))


def test_long_previous_values_stay_ranges_of_the_file(tmp_path: Path) -> None:
    path = make_file(tmp_path / "stored", PatientComments="c" * 9000)
    with stored_at(path) as stored:
        made = OutgoingPlan((Coercion(wanted(("PatientComments",))),)).make_data_set(stored)
        assert made is not None
        assert sum(len(part) for part in made.parts if isinstance(part, bytes)) < 1000
    after = rewrite(path, wanted(("PatientComments",)))
    assert after is not None
    [item] = read(after).OriginalAttributesSequence
    assert item.ModifiedAttributesSequence[0].PatientComments == "c" * 9000


def test_damaged_data_sets_are_refused_with_a_reason(tmp_path: Path) -> None:
    path = make_file(tmp_path / "stored", DEFLATED)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RewriteError, match="deflate stream is cut short"):
        rewrite(path, wanted(PatientID="N1"))
    path = make_file(tmp_path / "stored")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RewriteError, match=r"\(7FE0,0010\) ends behind the data set"):
        rewrite(path, wanted(PatientID="N1"))


def test_a_huge_image_costs_no_memory_and_few_reads(tmp_path: Path) -> None:
    path = make_file(tmp_path / "stored")
    data = path.read_bytes()
    size = 3 << 30
    at = data.rindex(b"OW\0\0\x08\0\0\0") + 4
    with path.open("r+b") as file:
        file.seek(at)
        file.write(size.to_bytes(4, "little"))
        file.truncate(at + 4 + size)  # sparse: the pixels take no room on the disk
    tracemalloc.start()
    with stored_at(path) as stored:
        made = OutgoingPlan((Coercion(wanted(PatientID="N1")),)).make_data_set(stored)
        assert made is not None
        assert made.length is not None
        assert made.length > size
        most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20


def test_a_deflated_image_is_inflated_and_deflated_in_pieces(tmp_path: Path) -> None:
    path = make_file(tmp_path / "stored", DEFLATED)
    data = path.read_bytes()
    with stored_at(path) as stored:
        head = data[: stored.offset]
    deflater = zlib.compressobj(wbits=-15)
    body = deflater.compress(zlib.decompress(data[len(head) :], -15)[:-20])
    body += deflater.compress(b"\xe0\x7f\x10\x00OW\0\0" + (64 << 20).to_bytes(4, "little"))
    body += b"".join(deflater.compress(bytes(1 << 20)) for _ in range(64)) + deflater.flush()
    path.write_bytes(head + body)
    tracemalloc.start()
    with stored_at(path) as stored:
        made = OutgoingPlan((Coercion(wanted(PatientID="N1")),)).make_data_set(stored)
        assert made is not None
        deflated = sum(len(part) for part in made.parts if isinstance(part, bytes))
        most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert deflated < 1 << 20
    assert most < 4 << 20


VALUES = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\\^="), max_size=4
)
CHANGES = st.dictionaries(
    st.sampled_from(["PatientID", "PatientName", "InstitutionName", "StationName", "PatientComments"]), VALUES
)


@examples(60)
@given(
    values=CHANGES,
    removed=st.sets(st.sampled_from(["PatientBirthDate", "ProtocolName", "ReferencedPatientSequence"])),
    syntax=st.sampled_from([IMPLICIT, EXPLICIT, BIG, DEFLATED, JPEG]),
)
def test_set_and_removed_attributes_are_read_back_and_a_second_pass_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str], removed: set[str], syntax: str
) -> None:
    folder = tmp_path_factory.mktemp("property")
    path = make_file(folder / "stored", syntax, SpecificCharacterSet="ISO_IR 192", ProtocolName="P")
    changes = wanted(tuple(removed), **values)
    made = rewrite(path, changes)
    assert made == rewrite(path, changes)
    after = read(made or path.read_bytes())
    for name, value in values.items():
        assert str(after.get(name) or "") == value
    assert not any(name in after for name in removed)
    (folder / "again").write_bytes(made or path.read_bytes())
    assert rewrite(folder / "again", changes) is None


def test_the_map_sets_what_its_line_says_and_an_unmatched_instance_is_sent_or_refused() -> None:
    table = AttributeMap(
        (PATIENT_ID,),
        {
            ("4711",): (parse_new_value("PatientID", "A-1"),),
            ("0815",): (parse_new_value("PatientName", "B"),),
        },
    )
    changes = WantedChanges((parse_new_value("PatientName", "A"),), map=table)
    cases: dict[bytes, dict[int, bytes]] = {
        b"4711 ": {PATIENT_ID: b"A-1", PATIENT_NAME: b"A"},
        b"0815": {PATIENT_NAME: b"B"},
        b"other": {PATIENT_NAME: b"A"},
    }
    for found, expected in cases.items():
        decided = decide_changes(changes, {PATIENT_ID: found}, "<")
        assert {change.tag: change.after for change in decided} == expected
    with pytest.raises(RewriteError, match="no line of the map has its PatientID"):
        decide_changes(WantedChanges(map=table, needs_match=True), {PATIENT_ID: b"other"}, "<")


@pytest.mark.parametrize(
    ("name", "value", "order", "raw"),
    [
        ("SeriesNumber", 7, "<", b"7"),
        ("PatientWeight", 71.5, "<", b"71.5"),
        ("OtherPatientNames", ["A^B", "C"], "<", b"A^B\\C"),
        ("TagAngleSecondAxis", -2, ">", b"\xff\xfe"),
        ("AcquisitionDuration", 0.5, "<", b"\0\0\0\0\0\0\xe0\x3f"),
        ("PatientComments", "a\\b", "<", b"a\\b"),
    ],
)
def test_values_of_each_kind_are_encoded(name: str, value: object, order: str, raw: bytes) -> None:
    new = parse_new_value(name, value)
    [change] = decide_changes(WantedChanges((new,)), {}, order)
    assert change.after == raw


def test_coercion_follows_other_changes_of_the_same_data_set(tmp_path: Path) -> None:
    """A change gets the parts of the one before it, so the two can be combined."""
    path = make_file(tmp_path / "stored")
    with stored_at(path) as stored:
        whole = FileParts(stored.fd, stored.as_outgoing().parts)
        cut = OutgoingDataSet(
            stored.sop_class_uid,
            stored.sop_instance_uid,
            stored.transfer_syntax_uid,
            stored.fd,
            [*whole.cut(0, 50), whole.read(50, 60), *whole.cut(110, whole.length)],
            whole.length,
        )
        made = Coercion(wanted(PatientID="N1")).rewrite(cut, stored)
        plain = Coercion(wanted(PatientID="N1")).rewrite(stored.as_outgoing(), stored)
        joined, expected = FileParts(stored.fd, made.parts), FileParts(stored.fd, plain.parts)
        assert joined.read(0, joined.length) == expected.read(0, expected.length)


@examples(300)
@given(
    syntax=st.sampled_from([IMPLICIT, EXPLICIT, BIG, DEFLATED, JPEG]),
    changed=st.lists(
        st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4
    ),
    cut=st.integers(0, 400),
    character_set=st.sampled_from(["ISO_IR 100", "\\ISO 2022 IR 87", "ISO_IR 192"]),
)
def test_hostile_bytes_are_changed_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    syntax: str,
    changed: list[tuple[int, bytes]],
    cut: int,
    character_set: str,
) -> None:
    """INVARIANT 5: another exception would end the drain, and block the destination."""
    path = make_file(
        tmp_path_factory.mktemp("hostile") / "stored",
        syntax,
        SpecificCharacterSet=character_set.split("\\"),
        OriginalAttributesSequence=Sequence([Dataset()]),
    )
    data = bytearray(path.read_bytes())
    with stored_at(path) as stored:
        offset = stored.offset
    for at, value in changed:
        place = offset + at % (len(data) - offset)
        data[place : place + len(value)] = value
    path.write_bytes(data[: len(data) - cut % (len(data) - offset)])
    changes = wanted(("InstitutionName", "ReferencedPatientSequence", "0011,1001"), PatientName="Müller")
    with contextlib.suppress(RewriteError):
        rewrite(path, changes)
