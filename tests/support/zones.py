"""Time zones of tests: the wall clock shows what a test wants, and the clock of the machine stays."""

import os
import struct
import time
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingest.config import hours

ZONE = "Test/Zone"
_DAY_SECONDS = 86_400


def _write_zone(path: Path, offset_seconds: int) -> None:
    """Write a zone of one offset (RFC 8536, version 1)."""
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"TZif" + bytes(16) + counts + struct.pack(">lbb", offset_seconds, 0, 0) + b"TST\0")


@contextmanager
def wall_clock(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hour: int, in_seconds: float
) -> Iterator[float]:
    """Make the zone `ZONE`, in which it is `hour` o'clock in so many seconds, for this and new processes.

    Yields:
        The Unix time of that hour.
    """
    at = round(time.time() + in_seconds)
    offset = (hour * 3600 - at) % _DAY_SECONDS
    _write_zone(folder / ZONE, offset - _DAY_SECONDS * (offset > _DAY_SECONDS // 2))
    paths = (str(folder), *zoneinfo.TZPATH)
    monkeypatch.setenv("PYTHONTZPATH", os.pathsep.join(paths))
    zoneinfo.reset_tzpath(to=paths)
    _forget_zones()
    try:
        yield at
    finally:
        monkeypatch.delenv("PYTHONTZPATH")
        zoneinfo.reset_tzpath()
        _forget_zones()


def _forget_zones() -> None:
    zoneinfo.ZoneInfo.clear_cache()
    for cached in (hours.load_zone, hours.parse_hours, hours._parse_delivery_hours):
        cached.cache_clear()
