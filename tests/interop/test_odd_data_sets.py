"""Data sets with odd values at DCMTK's storescp and at Orthanc, which abort what ends in an odd fragment."""

import io
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from tests.interop.files import by_uid, data_set
from tests.interop.orthanc import orthanc
from tests.support.forwarding import Forwarding
from tests.support.instances import CT, IMPLICIT, Made
from tests.support.peers import require_program, storescp
from tests.support.pki import Material
from tests.support.servers import Valkey

BIG, JPEG, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1.99"
UNDEFINED = 0xFFFFFFFF


def element(tag: int, vr: bytes, value: bytes, order: str = "<") -> bytes:
    """A data element in Explicit VR, of whatever length it has."""
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in {b"OB", b"OW", b"SQ", b"UN"}:
        return head + b"\0\0" + struct.pack(order + "L", len(value)) + value
    return head + struct.pack(order + "H", len(value)) + value


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def item(value: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value


def head(sop: str, order: str = "<", *, coded: bool = True) -> bytes:
    """What each instance begins with; all of it even."""
    values = [
        (0x00080016, b"UI", CT.encode().ljust(26, b"\0")),
        (0x00080018, b"UI", sop.encode() + b"\0" * (len(sop) % 2)),
        (0x00080060, b"CS", b"CT"),
        (0x00100020, b"LO", b"ID"),
        (0x0020000D, b"UI", b"1.2.3\0"),
        (0x0020000E, b"UI", b"1.2.3.1\0"),
    ]
    if not coded:
        return b"".join(implicit(tag, value) for tag, _, value in values)
    return b"".join(element(tag, vr, value, order) for tag, vr, value in values)


def fragments(sop: str, *values: bytes) -> bytes:
    """Encapsulated pixels with a Basic Offset Table."""
    offsets = [sum(8 + len(value) for value in values[:n]) for n in range(len(values))]
    table = struct.pack(f"<{len(offsets)}L", *offsets)
    begin = struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, UNDEFINED)
    return (
        head(sop) + begin + item(table) + b"".join(map(item, values)) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    )


@dataclass(frozen=True)
class Raw(Made):
    """An instance of these very bytes."""

    raw: bytes = b""

    @property
    def data_set(self) -> bytes:
        return self.raw


PIXELS = 0x7FE00010
ODD, EVEN = b"\1\2\3", b"\1\2\3\0"


def nested(value: bytes) -> bytes:
    """A sequence and an item of defined length around a value."""
    return element(0x00400275, b"SQ", item(element(0x00400007, b"LO", value)))


def explicit_one(number: int, *rest: bytes) -> Raw:
    sop = f"1.2.3.{number}"
    return Raw(sop=sop, raw=head(sop) + b"".join(rest))


def deflated_one(number: int, pixels: bytes) -> Raw:
    sop = f"1.2.3.{number}"
    whole = head(sop) + element(PIXELS, b"OB", pixels)
    return Raw(sop=sop, syntax=DEFLATED, raw=zlib.compress(whole, wbits=-15))


def implicit_one(pixels: bytes) -> Raw:
    return Raw(sop="1.2.3.2", syntax=IMPLICIT, raw=head("1.2.3.2", coded=False) + implicit(PIXELS, pixels))


def big_one(pixels: bytes) -> Raw:
    return Raw(sop="1.2.3.3", syntax=BIG, raw=head("1.2.3.3", ">") + element(PIXELS, b"OB", pixels, ">"))


def jpeg_one(first: bytes) -> Raw:
    return Raw(sop="1.2.3.4", syntax=JPEG, raw=fragments("1.2.3.4", first, b"de"))


PAIRS = [
    (explicit_one(1, element(PIXELS, b"OB", ODD)), explicit_one(1, element(PIXELS, b"OB", EVEN))),
    (implicit_one(ODD), implicit_one(EVEN)),
    (big_one(ODD), big_one(EVEN)),
    (jpeg_one(b"abc"), jpeg_one(b"abc\0")),
    (explicit_one(5, nested(b"abc")), explicit_one(5, nested(b"abc "))),
    # What is behind the last element is no value, and left out.
    (explicit_one(6, element(PIXELS, b"OB", EVEN), b"\0"), explicit_one(6, element(PIXELS, b"OB", EVEN))),
]
"""Odd instances, each with what has to arrive."""

UNCHANGED = [
    # Two odd values make an even data set, which nobody minds.
    explicit_one(7, element(0x00204000, b"LT", b"abc"), element(PIXELS, b"OB", ODD)),
    # A deflate stream is padded whole; what is odd in it hurts nobody either.
    *(deflated_one(number, b"\1" * (2 * number + 1)) for number in range(8, 14)),
]
HOPELESS = explicit_one(20, element(PIXELS, b"OB", ODD)[:-1] + b"\1\2" + b"x" * 11)
"""Behind the last element there is something that is no element."""


@pytest.fixture
def site(tmp_path: Path, redis_server: Valkey, material: Material) -> Iterator[Forwarding]:
    made = Forwarding(tmp_path / "node", redis_server, material.tls("node"))
    yield made
    made.ledger.close()


def all_arrive(site: Forwarding) -> None:
    """Forward them all; what can be padded is delivered at its first attempt, the rest dead at its first."""
    assert {len(one.raw) % 2 for one in UNCHANGED[1:]} == {0, 1}, "some deflate streams are odd, some even"
    before = [one.file for one, _ in PAIRS]
    site.record(*(one for one, _ in PAIRS), *UNCHANGED, HOPELESS)
    with site.worker():
        site.wake()
        site.wait({"delivered": len(PAIRS) + len(UNCHANGED), "dead": 1}, 60)
    rows = {one.sop: site.row(one.sop) for one in [*(one for one, _ in PAIRS), *UNCHANGED, HOPELESS]}
    assert {row.attempts for row in rows.values()} == {1}
    for one, _ in PAIRS:
        assert "was padded" in str(rows[one.sop].last_error)
    assert {rows[one.sop].last_error for one in UNCHANGED} == {None}
    assert "odd length, and cannot be padded" in str(rows[HOPELESS.sop].last_error)
    assert site.ledger.circuits.read_circuit("pacs").failures == 0
    # The store has them as they came.
    assert [(site.config.store_root / f"{one.sop}.dcm").read_bytes() for one, _ in PAIRS] == before


def test_storescp_gets_odd_data_sets_padded(site: Forwarding, material: Material, tmp_path: Path) -> None:
    with storescp(tmp_path / "arrived", material.tls("remote")) as port:
        site.add(port)
        all_arrive(site)
    arrived = {uid: data_set(path) for uid, path in by_uid((tmp_path / "arrived").iterdir()).items()}
    for _, right in PAIRS:
        assert arrived[right.sop] == right.raw
    for one in UNCHANGED:
        assert arrived[one.sop] == one.raw + b"\0" * (len(one.raw) % 2)


def test_orthanc_gets_odd_data_sets_padded(site: Forwarding, material: Material, tmp_path: Path) -> None:
    with orthanc(material, "remote") as server:
        site.add(server.dicom_port)
        all_arrive(site)
        arrived = server.files(tmp_path / "arrived")
    assert arrived.keys() == {one.sop for one, _ in PAIRS} | {one.sop for one in UNCHANGED}
    assert pydicom.dcmread(arrived["1.2.3.1"]).PixelData == EVEN
    assert (
        pydicom.dcmread(arrived["1.2.3.5"]).RequestAttributesSequence[0].ScheduledProcedureStepDescription
        == "abc"
    )


def test_storescp_gets_changed_attributes_in_each_encoding(
    site: Forwarding, material: Material, tmp_path: Path
) -> None:
    made = [*(one for one, _ in PAIRS), *UNCHANGED]
    with storescp(tmp_path / "arrived", material.tls("remote")) as port:
        site.add(port, set={"PatientName": "New^Name", "PatientID": "N1"}, remove=("Modality",))
        site.record(*made)
        with site.worker():
            site.wake()
            site.wait({"delivered": len(made)}, 60)
    arrived = by_uid((tmp_path / "arrived").iterdir())
    assert arrived.keys() == {one.sop for one in made}
    for path in arrived.values():
        said = subprocess.run(
            [require_program("dcmdump"), "-s", "+P", "0010,0010", "+P", "0010,0020", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        values = [line.split("[")[1].partition("]")[0] for line in said.stdout.splitlines()]
        assert values == ["New^Name", "N1"]
        # A data set with two odd values is sent as it is.
        assert all(line.endswith(" is odd") for line in said.stderr.splitlines()), said.stderr
    for _, right in PAIRS:
        found = pydicom.dcmread(arrived[right.sop])
        assert "Modality" not in found
        whole = pydicom.dcmread(io.BytesIO(right.file))
        assert found.get("PixelData") == whole.get("PixelData")
        assert found.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientID == "ID"


def test_send_pads_too(material: Material, tmp_path: Path) -> None:
    odd, right = PAIRS[0]
    (tmp_path / "odd.dcm").write_bytes(odd.file)
    (tmp_path / "hopeless.dcm").write_bytes(HOPELESS.file)
    with storescp(tmp_path / "arrived", None) as port:
        summary = send_files(
            Remote("127.0.0.1", port, "REMOTE", "CT1"), [tmp_path / "odd.dcm", tmp_path / "hopeless.dcm"]
        )
    assert [result.path.name for result in summary.stored_files] == ["odd.dcm"]
    assert "cannot be padded" in summary.failed_files[0].error
    [path] = (tmp_path / "arrived").iterdir()
    assert data_set(path) == right.raw
