"""Parts read, cut and edited as one file; PDUs carry exactly their bytes, in even fragments."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.dicom.padding import Edit
from ingest.errors import StoreError
from ingest.ext.encode import DataSetEncoder
from ingest.outgoing.data_set import FileParts, FileRange, Part
from ingest.requestor.fragments import READ_BYTES_MAX, PartFragments
from tests.support.properties import examples

DATA = random.Random(5).randbytes(200_000)
MAX_PDU_LENGTHS = (7, 8, 4096, 16384, 0)

# Around the limit up to which ranges are read into memory, and odd ones as well as even ones.
LENGTHS = st.sampled_from([0, 1, 2, 3, 100, 4089, 4090, 4091]) | st.integers(
    READ_BYTES_MAX - 2, READ_BYTES_MAX + 3
)
PARTS = st.lists(
    st.builds(FileRange, st.integers(0, 100_000), LENGTHS)
    | LENGTHS.map(lambda length: random.Random(length).randbytes(length)),
    max_size=6,
)


@pytest.fixture(scope="module")
def fd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path: Path = tmp_path_factory.mktemp("parts") / "stored"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def join(parts: "list[Part] | Iterator[Part]") -> bytes:
    return b"".join(
        part if isinstance(part, bytes) else DATA[part.offset : part.offset + part.length] for part in parts
    )


@examples(100)
@given(parts=PARTS, cuts=st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)))
def test_parts_are_read_cut_and_edited_as_one_file(fd: int, parts: list[Part], cuts: tuple[int, int]) -> None:
    whole, made = join(parts), FileParts(fd, parts)
    begin, end = sorted(min(cut, len(whole)) for cut in cuts)
    assert made.length == len(whole)
    assert made.read(begin, end - begin) == join(made.cut(begin, end)) == whole[begin:end]
    edits = [Edit(begin, 0, b"new"), Edit(begin, end - begin, b"")]
    assert join(made.edit(edits)) == whole[:begin] + b"new" + whole[end:]


@examples(100)
@given(parts=PARTS, max_pdu_length=st.sampled_from(MAX_PDU_LENGTHS))
def test_pdus_carry_the_parts_in_even_fragments_and_mark_the_last(
    fd: int, parts: list[Part], max_pdu_length: int
) -> None:
    if max_pdu_length < 4096:
        parts = parts[:1]
    fragment = max(1, min((max_pdu_length or 1 << 17) - 6, (1 << 17) - 12) & ~1)
    made = PartFragments(DataSetEncoder(max_pdu_length), 5, fd, fragment, pads=True)
    wire = b"".join(bytes(view) for view in made.encode(iter(parts)))
    found, is_last = b"", False
    while wire:
        assert not is_last
        length = 6 + int.from_bytes(wire[2:6], "big")
        assert wire[0] == 4
        assert wire[10] == 5
        assert int.from_bytes(wire[6:10], "big") == length - 10
        assert length % 2 == 0 or max_pdu_length == 7
        assert not max_pdu_length or length - 6 <= max_pdu_length
        found, is_last, wire = found + wire[12:length], wire[11] == 2, wire[length:]
    assert is_last
    whole = join(parts)
    is_padded = len(found) > len(whole)
    assert found == whole + b"\0" * is_padded
    assert is_padded == bool(len(whole) % 2) or max_pdu_length == 7


def test_odd_parts_are_an_error_unless_they_are_padded(fd: int) -> None:
    made = PartFragments(DataSetEncoder(4096), 1, fd, 4090, pads=False)
    with pytest.raises(StoreError, match="odd length"):
        list(made.encode([b"abc"]))


def test_a_part_is_made_only_when_the_fragments_before_it_were_taken(fd: int) -> None:
    made_parts = []

    def make_parts() -> Iterator[Part]:
        for number in range(4):
            made_parts.append(number)
            yield bytes(4090)

    pdus = PartFragments(DataSetEncoder(4096), 1, fd, 4090, pads=False).encode(make_parts())
    next(pdus)
    assert made_parts == [0, 1]
