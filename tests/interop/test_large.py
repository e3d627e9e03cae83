"""An instance of 2 GB goes through two nodes, none of whose processes holds more than a little of it."""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.requestor.store_scu import StoreSCU, Timeouts
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.interop.files import digest, made, made_uid, unreadable_by_dcmdump
from tests.interop.memory import watched
from tests.support.instances import CT, EXPLICIT, element
from tests.support.nodes import Node, destination, eventually
from tests.support.pki import Material

SIZE = 2 * 1024**3
RESIDENT_MAX = 150 * 1024**2
FREE_NEEDED = 3 * SIZE

pytestmark = pytest.mark.long


@pytest.fixture
def large(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A Part 10 file with 2 GB of Pixel Data, and the offset of its data set; sparse, with marks all over."""
    if shutil.disk_usage(tmp_path).free < FREE_NEEDED:
        pytest.skip(f"{FREE_NEEDED // 1024**3} GiB of disk are needed")
    path = tmp_path / "large.dcm"
    head = made(0, size=0)[: -len(element(0x7FE0, 0x0010, "OB", b""))]
    head += b"\xe0\x7f\x10\x00OB\0\0" + SIZE.to_bytes(4, "little")
    marks = random.Random(2)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + SIZE)
        for at in range(0, SIZE - 8192, 1 << 24):
            file.seek(len(head) + at + marks.randrange(4096))
            file.write(marks.randbytes(4096))
    yield path, made(0, size=0).index(element(0x0008, 0x0016, "UI", CT.encode()))
    # Also after a failure; `large` is asked for first, so that the nodes have ended by now.
    for left in tmp_path.rglob("*"):
        if left.is_file() and left.stat().st_size > 1 << 24:
            left.unlink()


def test_two_gigabytes_pass_with_little_memory(
    large: tuple[Path, int],
    make_node: Callable[..., Node],
    material: Material,
    record_property: Callable[[str, object], None],
) -> None:
    path, offset = large
    receive = "[receive]\nprocesses = 1\nmin_free_bytes = 0"
    far = make_node("far", receive=receive).start()
    onward = destination("far", far.tls_port, response_seconds=120)
    near = make_node("near", receive=receive, destinations=onward).start()
    remote = Remote("localhost", near.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))

    with watched([near, far]) as peaks:
        began = time.monotonic()
        timeouts = Timeouts(response_seconds=120)
        with StoreSCU.open(remote, [(CT, [EXPLICIT])], timeouts=timeouts) as association:
            response = association.store_instance(
                path, offset, None, sop_class=CT, sop_instance=made_uid(0), transfer_syntax=EXPLICIT
            )
        sent = time.monotonic()
        assert response.status == 0x0000
        arrived = eventually(lambda: far.stored().get(made_uid(0)), 120, "the instance at the far node")
        eventually(lambda: near.deliveries() == {"delivered": 1}, 20, "delivered")
        ended = time.monotonic()

    record_property("receive_mb_per_second", round(SIZE / 1e6 / (sent - began)))
    record_property("whole_path_mb_per_second", round(SIZE / 1e6 / (ended - began)))
    record_property("peak_resident_mb", {name: round(size / 1e6) for name, size in peaks.items()})
    assert peaks.keys() >= {"supervisor", "ingest-listen", "ingest-persist", "ingest-forward"}
    assert max(peaks.values()) < RESIDENT_MAX, peaks
    stored = near.stored()[made_uid(0)]
    assert digest(path) == digest(stored) == digest(arrived)
    assert not unreadable_by_dcmdump([stored])
