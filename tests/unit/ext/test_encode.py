"""P-DATA-TF made for a peer: never longer than it allows, whole PDUs only, and nothing of the file lost."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom.pdu import P_DATA_TF

from ingest.ext.encode import DataSetEncoder, encode_p_data

DATA = random.Random(3).randbytes(300_001)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "source").write_bytes(b"File Meta" + DATA)
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    yield fd
    os.close(fd)


def pdus(wire: bytes) -> list[bytes]:
    """The P-DATA-TF PDUs of a stream that must hold nothing else."""
    found = []
    while wire:
        assert wire[:2] == b"\x04\x00"
        length = 6 + int.from_bytes(wire[2:6], "big")
        assert length <= len(wire)
        found.append(wire[:length])
        wire = wire[length:]
    return found


def check(wire: bytes, context_id: int, control: int, max_pdu_length: int) -> bytes:
    """What the PDVs of a stream hold; asserts all that PS3.8 says about their form."""
    payload = b""
    all_pdus = pdus(wire)
    for i, pdu in enumerate(all_pdus):
        assert not max_pdu_length or len(pdu) - 6 <= max_pdu_length
        assert int.from_bytes(pdu[6:10], "big") == len(pdu) - 10  # one PDV, filling its PDU
        last = i == len(all_pdus) - 1
        assert (pdu[10], pdu[11]) == (context_id, control | (2 if last else 0))
        assert last or len(pdu) % 2 == 0 or max_pdu_length == 7
        payload += pdu[12:]
    return payload


def encoded(encoder: DataSetEncoder) -> bytes:
    return b"".join(bytes(view) for view in iter(encoder.fill, memoryview(b"")))


@pytest.mark.parametrize("max_pdu_length", [0, 7, 8, 9, 10, 11, 100, 106, 107, 4096, 0xFFFFFFFF])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 100, 101, 1000])
def test_command_set_comes_back_from_its_pdus(length: int, max_pdu_length: int) -> None:
    command = DATA[:length]
    assert check(encode_p_data(5, command, max_pdu_length), 5, 1, max_pdu_length) == command


def test_command_set_reads_as_pynetdicom_reads_it() -> None:
    decoded = P_DATA_TF()
    decoded.decode(encode_p_data(3, b"ab" * 20, 0))
    (item,) = decoded.presentation_data_value_items
    assert (item.presentation_context_id, item.presentation_data_value) == (3, b"\x03" + b"ab" * 20)


@pytest.mark.parametrize("max_pdu_length", [7, 8, 9, 4096, 4097, 16384, 131072, 1 << 24, 0])
@pytest.mark.parametrize("length", [0, 1, 2, 4090, 4091, 300_001])
def test_data_set_comes_back_from_its_pdus(source: int, length: int, max_pdu_length: int) -> None:
    if max_pdu_length < 4096:
        length = min(length, 4091)
    encoder = DataSetEncoder(max_pdu_length)
    encoder.start(9, source, 9, length)
    assert check(encoded(encoder), 9, 0, max_pdu_length) == DATA[:length]


@pytest.mark.parametrize("buffer_size", [14, 15, 16, 100, 4096, 5000, 1 << 20])
def test_data_set_comes_back_from_any_buffer(source: int, buffer_size: int) -> None:
    encoder = DataSetEncoder(4096, buffer_size)
    encoder.start(1, source, 9, 20_001)
    views = [bytes(view) for view in iter(encoder.fill, memoryview(b""))]
    assert check(b"".join(views), 1, 0, 4096) == DATA[:20_001]
    for view in views:
        assert len(view) <= buffer_size
        assert pdus(view)  # whole PDUs only


@pytest.mark.parametrize("max_pdu_length", [8, 4096, 16384, 0])
@pytest.mark.parametrize("length", [0, 1, 2, 4089, 4090, 4091])
def test_padded_data_set_has_even_fragments_and_one_zero_more_where_it_was_odd(
    source: int, length: int, max_pdu_length: int
) -> None:
    encoder = DataSetEncoder(max_pdu_length, 4102)
    encoder.start(9, source, 9, length, pad=True)
    sent = encoded(encoder)
    assert check(sent, 9, 0, max_pdu_length) == DATA[:length] + b"\0" * (length % 2)
    assert all(len(pdu) % 2 == 0 for pdu in pdus(sent))


def test_small_pdus_fill_the_buffer_in_one_go(source: int) -> None:
    encoder = DataSetEncoder(4096, 131072)
    encoder.start(1, source, 9, len(DATA))
    assert len(pdus(bytes(encoder.fill()))) == 131072 // 4102


def test_encoder_is_used_again_and_forgets_what_was_under_way(source: int) -> None:
    encoder = DataSetEncoder(16384, 20_000)
    assert len(encoder.fill()) == 0
    encoder.start(1, source, 9, len(DATA))
    encoder.fill()
    encoder.start(3, source, 19, 50_000)
    assert check(encoded(encoder), 3, 0, 16384) == DATA[10:50_010]
    assert len(encoder.fill()) == 0


def test_short_file_is_an_error_and_no_end(source: int) -> None:
    encoder = DataSetEncoder(16384)
    encoder.start(1, source, 9, len(DATA) + 1)
    for _ in range(len(DATA) // 131072):
        assert len(encoder.fill()) > 0
    for _ in range(2):
        with pytest.raises(OSError, match="ends before its data set"):
            encoder.fill()


def test_unreadable_file_is_its_oserror(tmp_path: Path) -> None:
    encoder = DataSetEncoder(16384)
    fd = os.open(tmp_path, os.O_RDONLY)
    encoder.start(1, fd, 0, 10)
    with pytest.raises(IsADirectoryError) as error:
        encoder.fill()
    os.close(fd)
    assert error.value.errno == errno.EISDIR


def test_view_lives_on_without_its_encoder(source: int) -> None:
    encoder = DataSetEncoder(16384)
    encoder.start(1, source, 9, 100)
    view = encoder.fill()
    del encoder
    assert bytes(view[12:]) == DATA[:100]


@pytest.mark.parametrize("max_pdu_length", [-1, 1, 6, 1 << 32])
def test_impossible_maximum_length_is_refused(max_pdu_length: int) -> None:
    with pytest.raises(ValueError, match="maximum PDU length"):
        encode_p_data(1, b"", max_pdu_length)
    with pytest.raises(ValueError, match="maximum PDU length"):
        DataSetEncoder(max_pdu_length)


@pytest.mark.parametrize("context_id", [-1, 0, 2, 256, 257])
def test_impossible_context_id_is_refused(context_id: int) -> None:
    with pytest.raises(ValueError, match="context ID"):
        encode_p_data(context_id, b"", 0)
    with pytest.raises(ValueError, match="context ID"):
        DataSetEncoder(0).start(context_id, 0, 0, 0)


def test_impossible_buffer_and_range_are_refused() -> None:
    for size in (-1, 0, 13, 1 << 31):
        with pytest.raises(ValueError, match="14 bytes"):
            DataSetEncoder(0, size)
    for fd, offset, length in ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, (1 << 63) - 1, 1)):
        with pytest.raises(ValueError, match="no part of a file"):
            DataSetEncoder(0).start(1, fd, offset, length)
