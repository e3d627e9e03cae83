"""What ext.store takes is what Python takes as sound, and becomes the same file and the same answer."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.dicom import dimse
from ingest.dicom.dimse import StoreRequest
from ingest.dicom.part10 import FileMeta, encode_file_meta
from ingest.dicom.responses import decode_response
from ingest.dicom.uids import is_valid_uid
from ingest.ext.encode import encode_p_data
from tests.faults.caller import CONTEXTS, MR, VERIFICATION, data_pdus
from tests.support.instances import CT, EXPLICIT, IMPLICIT, Made, element, implicit
from tests.support.properties import examples
from tests.support.storing import FILE_META, Association, Site, site

UID = "1.2.3.4"


def _file_meta(sop_class: str, sop_instance: str, transfer_syntax: str) -> FileMeta:
    return replace(
        FILE_META,
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        transfer_syntax_uid=transfer_syntax,
    )


@dataclass
class Both:
    """Two sites: what one does with ext.store, the other does in Python."""

    fast: Site
    slow: Site

    def play(self, stream: bytes, **options: int) -> Association:
        """Have both take the same, compare all that came of it; gives the fast one."""
        with self.fast.association(**options) as fast, self.slow.association(fast=False, **options) as slow:
            fast.feed(stream)
            slow.feed(stream)
            assert fast.line.heard() == slow.line.heard()
            assert str(fast.error) == str(slow.error)
            assert fast.scp.stored == slow.scp.stored
            assert fast.scp.outstanding == slow.scp.outstanding
        assert self.fast.partials() == self.slow.partials() == []
        assert self.fast.take_files() == self.slow.take_files()
        assert self.fast.counters() == self.slow.counters()
        assert len(self.fast.cstore_service.take_unpublished()) == len(
            self.slow.cstore_service.take_unpublished()
        )
        return fast


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    with site(folder / "fast") as fast, site(folder / "slow") as slow:
        yield Both(fast, slow)


def part(number: int, value: bytes, length: int | None = None, group: int = 0) -> bytes:
    """A command element; `length` lies."""
    return struct.pack("<HHL", group, number, len(value) if length is None else length) + value


def number(value: int) -> bytes:
    return struct.pack("<H", value)


def uid(text: bytes) -> bytes:
    return text + b"\0" * (len(text) % 2)


def command(elements: list[bytes]) -> bytes:
    body = b"".join(elements)
    return part(0, struct.pack("<L", len(body))) + body


# --- what is sound is taken


@pytest.mark.parametrize("length", [1, 2, 63, 64])
@pytest.mark.parametrize("number", [1, 5])
def test_a_sound_instance_is_taken_and_answered_byte_for_byte(
    number: int, length: int, both: Both, tmp_path: Path
) -> None:
    _, sop_class, transfer = next(context for context in CONTEXTS if context[0] == number)
    instance = ("1." * 40)[: length - 1] + "2" if length > 1 else "2"
    instance = instance.replace(".2", "12") if not is_valid_uid(instance) else instance
    request = StoreRequest(4711, sop_class, instance)
    make = element if transfer == EXPLICIT else (lambda g, e, _, v: implicit(g, e, v))
    data = make(8, 0x16, "UI", sop_class.encode()) + make(8, 0x18, "UI", instance.encode())
    data += make(0x7FE0, 0x10, "OW", bytes(1000))
    with site(tmp_path) as alone, alone.association() as association:
        association.store(dimse.encode_store_request(4711, sop_class, instance), data, number)
        assert association.left == []
        response = dimse.encode_store_response(request, 0)
        assert association.line.heard() == encode_p_data(number, response, 0)
        head = encode_file_meta(_file_meta(sop_class, instance, transfer))
        assert alone.take_files() == [("dcm", head + data)]
        assert alone.counters() == (1, len(data), 0)
    stream = encode_p_data(number, dimse.encode_store_request(1, sop_class, instance), 0) + data_pdus(
        number, data
    )
    assert both.play(stream).left == []


def test_an_instance_in_many_pieces_is_taken(both: Both) -> None:
    made = Made(sop=UID, pixels=bytes(range(256)) * 4000)
    for length in (300, 16384, 131072):
        stream = encode_p_data(1, dimse.encode_store_request(1, CT, UID), 0) + data_pdus(
            1, made.data_set, length=length
        )
        assert both.play(stream).left == []


# --- whatever else comes


REQUIRED = {
    0x0002: uid(CT.encode()),
    0x0100: number(1),
    0x0110: number(7),
    0x0700: number(0),
    0x0800: number(1),
    0x1000: uid(UID.encode()),
}

numbers = st.sampled_from(
    [0, 1, 2, 3, 0x100, 0x110, 0x120, 0x600, 0x700, 0x800, 0x900, 0x1000, 0x1001, 0x1030, 0x1031, 0xFFFF]
)
values = st.one_of(
    st.sampled_from([b"", b"\0", b" ", number(0), number(1), number(0x0101), number(7), number(0xFFFF)]),
    st.sampled_from(
        [CT.encode(), uid(CT.encode()), MR.encode(), VERIFICATION.encode(), UID.encode() + b" \0 "]
    ),
    st.sampled_from(
        [b"1.2..3", b".1", b"1.", b"1.2.a", b"1/2", b"1.2 3", b" 1.2", b"9" * 64, b"9" * 65, b"1.02"]
    ),
    st.binary(max_size=6),
)


@st.composite
def command_sets(draw: st.DrawFn) -> bytes:
    """A C-STORE-RQ with up to three things odd about it."""
    elements = [part(key, value) for key, value in REQUIRED.items()]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(elements) - 1)) if elements else 0
        kind = draw(st.sampled_from(["drop", "double", "value", "more", "length", "group", "order"]))
        key = struct.unpack_from("<H", elements[at], 2)[0] if elements else 0x1000
        if kind == "more" or not elements:
            elements.insert(at, part(draw(numbers), draw(values)))
        elif kind == "drop":
            del elements[at]
        elif kind == "double":
            elements.append(elements[at])
        elif kind == "value":
            elements[at] = part(key, draw(values))
        elif kind == "length":
            elements[at] = part(key, draw(values), draw(st.sampled_from([0, 1, 2, 3, 64, 0xFFFFFFFF])))
        elif kind == "group":
            elements[at] = part(key, draw(values), group=draw(st.sampled_from([0, 2, 8])))
        else:
            elements = draw(st.permutations(elements))
    made = command(elements) if draw(st.integers(0, 9)) else b"".join(elements)
    return made[: len(made) - draw(st.sampled_from([0, 0, 0, 0, 1, 7, 8]))]


SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(examples(100), suppress_health_check=SLOW)
@given(
    sets=st.lists(command_sets(), min_size=1, max_size=3),
    context=st.sampled_from([1, 1, 1, 1, 5, 3, 7, 9]),
    named=st.sampled_from([UID, UID, UID, "1.2.3", "1.02", "9" * 64, ""]),
)
def test_odd_command_sets_have_the_same_end(both: Both, sets: list[bytes], context: int, named: str) -> None:
    data = Made(sop=UID, sop_in_data_set=named).data_set
    stream = b"".join(encode_p_data(context, each, 0) + data_pdus(context, data) for each in sets)
    both.play(stream + encode_p_data(3, dimse.encode_echo_request(99), 0))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (0x0800, number(0x0101)),  # no data set
        (0x0800, b""),
        (0x0800, number(1) * 2),
        (0x0100, number(0x8001)),
        (0x0100, number(0x0030)),
        (0x0110, b""),
        (0x0110, number(7) * 2),
        (0x0700, b""),
        (0x0700, number(0) * 2),
        (0x0700, number(0xFFFF)),
        (0x0002, b""),
        (0x0002, uid(MR.encode())),
        (0x0002, CT.encode() + b" \0 \0"),
        (0x0002, b" " + CT.encode()),
        (0x1000, b""),
        (0x1000, UID.encode() + b"  \0"),
        (0x1000, b"9" * 65),
        (0x0000, number(0)),
        (0x0003, uid(CT.encode())),
        (0x1030, b"MOVER "),
        (0x1031, number(9)),
    ],
)
@pytest.mark.parametrize("instead", [True, False])
def test_each_odd_element_has_the_same_end(both: Both, key: int, value: bytes, instead: bool) -> None:
    elements = [part(*each) for each in REQUIRED.items() if not instead or each[0] != key]
    stream = encode_p_data(1, command([*elements, part(key, value)]), 0)
    both.play(stream + data_pdus(1, Made(sop=UID).data_set))
    both.play(stream + encode_p_data(3, dimse.encode_echo_request(99), 0))


texts = st.text("0123456789.", max_size=66) | st.text("01. \0/a", max_size=6)


@settings(examples(100), suppress_health_check=SLOW)
@given(text=texts | st.from_regex(r"[0-9]{1,30}(\.[0-9]{1,30}){0,3}", fullmatch=True))
def test_what_is_a_uid_is_one_here_and_there(both: Both, text: str) -> None:
    value = text.encode()
    data = (
        element(8, 0x16, "UI", CT.encode()) + element(8, 0x18, "UI", value) + element(0x10, 0x10, "PN", b"x")
    )
    elements = {**REQUIRED, 0x1000: uid(value)}
    request = command([part(key, value) for key, value in elements.items()])
    fast = both.play(encode_p_data(1, request, 0) + data_pdus(1, data))
    assert (fast.left == []) == is_valid_uid(text.rstrip("\0 "))


@settings(examples(100), suppress_health_check=SLOW)
@given(
    context=st.sampled_from([1, 5, 7]),
    changes=st.lists(st.tuples(st.integers(0, 160), st.integers(0, 255)), max_size=3),
    cut=st.none() | st.integers(0, 160),
    length=st.sampled_from([1, 7, 50, 130, 16384]),
)
def test_odd_data_sets_have_the_same_end(
    both: Both, context: int, changes: list[tuple[int, int]], cut: int | None, length: int
) -> None:
    sop_class = MR if context == 5 else CT
    data = bytearray(Made(sop=UID, syntax=IMPLICIT if context == 5 else EXPLICIT).data_set[:cut])
    if context == 5:
        data = bytearray(bytes(data).replace(uid(CT.encode()), uid(MR.encode())))
    for at, byte in changes:
        if at < len(data):
            data[at] = byte
    request = dimse.encode_store_request(1, sop_class, UID)
    both.play(encode_p_data(context, request, 0) + data_pdus(context, bytes(data), length=length))


@pytest.mark.parametrize("quarantine", [True, False])
@pytest.mark.parametrize(
    ("sop", "named", "status", "suffix"),
    [
        (UID, "1.2.3.5", 0xA900, "A900.dcm"),
        (UID, "1.2.3.40", 0xA900, "A900.dcm"),
        ("1.2.3.40", UID, 0xA900, "A900.dcm"),
        (UID, "", 0, "dcm"),
    ],
)
def test_a_data_set_of_another_instance_is_left_to_python(
    sop: str, named: str, status: int, suffix: str, quarantine: bool, tmp_path: Path
) -> None:
    made = Made(sop=sop, sop_in_data_set=named)
    with site(tmp_path, quarantine=quarantine) as alone, alone.association() as association:
        association.store(dimse.encode_store_request(1, CT, sop), made.data_set)
        assert association.left == ["DataSet"]
        response = decode_response(association.line.heard()[12:])
        assert (response.status, response.message_id) == (status, 1)
        kept = [(suffix, len(made.data_set))] if quarantine or not status else []
        meta = encode_file_meta(_file_meta(CT, sop, EXPLICIT))
        files = alone.take_files()
        assert [(name, len(content) - len(meta)) for name, content in files] == kept
        assert all(content == meta + made.data_set for _, content in files)
        assert alone.counters() == ((0, 0, 1) if status else (1, len(made.data_set), 0))
