"""Micro-benchmarks of `ext/` (pytest-benchmark): `python -m benchmarks micro`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import stream
from benchmarks.parsing import parse
from ingest.dicom.uids import EXPLICIT_LITTLE_ENDIAN
from ingest.ext.command import decode_command, encode_command
from ingest.ext.encode import DataSetEncoder, encode_p_data
from ingest.ext.header import scan

RESPONSE = {
    "AffectedSOPClassUID": stream.CT_IMAGE,
    "CommandField": 0x8001,
    "MessageIDBeingRespondedTo": 1,
    "CommandDataSetType": 0x0101,
    "Status": 0,
    "AffectedSOPInstanceUID": "1.2.826.0.1.3680043.8.498.1",
}
TAGS = (0x00080016, 0x00080018, 0x0020000D, 0x0020000E)


@pytest.fixture
def nowhere() -> Iterator[int]:
    """Open a descriptor that takes all bytes and keeps none."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("work", stream.STREAMS, ids=lambda work: work[0])
def test_parse(benchmark: BenchmarkFixture, nowhere: int, work: tuple[str, int, int, int]) -> None:
    """A stream of C-STORE requests, from the buffer to the descriptor."""
    sample = stream.stream(*work)
    benchmark.extra_info["bytes"] = len(sample.data)
    assert benchmark(parse, sample.data, nowhere) == 2 * sample.instances


def test_decode_command(benchmark: BenchmarkFixture) -> None:
    """A C-STORE-RQ command set."""
    assert benchmark(decode_command, stream.command())["CommandField"] == 1


def test_encode_command(benchmark: BenchmarkFixture) -> None:
    """A C-STORE-RSP command set."""
    assert decode_command(benchmark(encode_command, RESPONSE))["Status"] == 0


def test_scan_header(benchmark: BenchmarkFixture) -> None:
    """The four UIDs that are compared with the command, from the first kilobytes of a data set."""
    head = stream.data_set(8 << 10)
    found = benchmark(scan, head, EXPLICIT_LITTLE_ENDIAN, TAGS, False)
    assert found is not None
    assert set(found) == set(TAGS)


def test_encode_response(benchmark: BenchmarkFixture) -> None:
    """A command set as one P-DATA-TF."""
    assert benchmark(encode_p_data, 1, encode_command(RESPONSE), 16384).startswith(b"\x04\0")


@pytest.mark.parametrize("pdu", [16384, 131072])
def test_encode_data_set(benchmark: BenchmarkFixture, tmp_path: Path, pdu: int) -> None:
    """512 KB from a file as P-DATA-TFs."""
    path = tmp_path / "data"
    path.write_bytes(stream.data_set(512 << 10))
    descriptor = os.open(path, os.O_RDONLY)
    encoder = DataSetEncoder(pdu)

    def encode() -> int:
        encoder.start(1, descriptor, 0, 512 << 10)
        total = 0
        while piece := encoder.fill():
            total += len(piece)
        return total

    try:
        assert benchmark(encode) > 512 << 10
    finally:
        os.close(descriptor)
