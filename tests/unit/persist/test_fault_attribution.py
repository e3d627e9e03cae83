"""Whose fault an error is."""

import errno

import pytest
import redis
from sqlalchemy.exc import DataError, IntegrityError

from ingest.errors import LedgerError, PeerError, SpoolError, StoreAwayError, StoreError, StoreMissingError
from ingest.workers.fault_attribution import ERRORS_OF_NAMES, is_our_fault, is_shortage


@pytest.mark.parametrize(
    "number", sorted(set(errno.errorcode) - ERRORS_OF_NAMES), ids=errno.errorcode.__getitem__
)
def test_every_error_of_the_system_is_our_fault(number: int) -> None:
    assert is_our_fault(OSError(number, "of the system"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        TimeoutError("nothing came"),
        ConnectionResetError(),
        LedgerError("away"),
        StoreAwayError("away"),
        StoreMissingError("away"),
        redis.ConnectionError("away"),
        redis.ResponseError("LOADING"),
    ],
)
def test_what_is_away_is_our_fault(error: Exception) -> None:
    assert is_our_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, "of the name") for number in sorted(ERRORS_OF_NAMES)),
        OSError("the file ends before its data set"),
        PeerError("no DICOM file"),
        StoreError("no such name can be had"),
        SpoolError("no place in the spool"),
        DataError("INSERT", {}, Exception()),
        IntegrityError("INSERT", {}, Exception()),
        RuntimeError("a fault of ours that the bytes bring out"),
    ],
)
def test_what_is_about_the_image_is_not(error: Exception) -> None:
    assert not is_our_fault(error)


def test_shortage_is_seen_behind_the_error_that_it_caused() -> None:
    caused = StoreAwayError("away")
    caused.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert is_shortage(caused)
    assert is_shortage(MemoryError())
    assert not is_shortage(StoreAwayError("away"))
    assert not is_shortage(OSError(errno.EIO, "Input/output error"))
