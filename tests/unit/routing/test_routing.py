"""Which destinations an instance goes to, and why."""

import struct
from typing import Any

import pytest

from ingest.config.model import Route
from ingest.config.route_conditions import parse_condition
from ingest.dicom.file_header import InstanceHeader
from ingest.errors import ConditionError
from ingest.routing.router import Router

CT = "1.2.840.10008.5.1.4.1.1.2"
SR = "1.2.840.10008.5.1.4.1.1.88.11"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG_LS = "1.2.840.10008.1.2.4.80"

MODALITY, STATION, INSTITUTION, BODY_PART = 0x0008_0060, 0x0008_1010, 0x0008_0080, 0x0018_0015
CHARACTER_SET, IMAGE_TYPE, SERIES_NUMBER, ROWS, PATIENT_NAME = (
    0x0008_0005,
    0x0008_0008,
    0x0020_0011,
    0x0028_0010,
    0x0010_0010,
)


def instance(syntax: str = EXPLICIT, sop_class: str = CT, **changes: Any) -> InstanceHeader:
    attributes: dict[int, bytes] = {
        MODALITY: b"CT",
        STATION: b"CT_ROOM_1 ",
        INSTITUTION: b"St. Mary",
        IMAGE_TYPE: b"ORIGINAL\\PRIMARY\\AXIAL ",
        SERIES_NUMBER: b"12",
        ROWS: struct.pack("<H", 512),
    }
    return InstanceHeader(
        calling_ae="CT1 ",
        called_ae="INGEST",
        sop_class_uid=sop_class,
        transfer_syntax_uid=syntax,
        attributes=attributes | changes.get("attributes", {}),
        receiver=changes.get("receiver", "dicom-tls://10.0.0.5:2762"),
        certificate=changes.get("certificate", ("ab" * 32, "CN=ct1,O=Hospital", "DNS:ct1.example.org")),
    )


def takes(when: dict[str, Any], one: InstanceHeader) -> bool:
    return Router([Route(to=("pacs",), when=when)]).route_instance(one).destinations == ("pacs",)


def test_who_came_without_a_certificate_has_none() -> None:
    assert not takes({"certificate": "*"}, instance(certificate=()))
    assert not takes({"listener": "*"}, instance(receiver=""))
    assert takes({"certificate": {"not": "*"}}, instance(certificate=()))


@pytest.mark.parametrize(
    ("when", "taken"),
    [
        ({}, True),
        ({"calling_ae": "CT1"}, True),
        ({"calling_ae": "CT*"}, True),
        ({"calling_ae": "ct*"}, False),
        ({"calling_ae": "MR?"}, False),
        ({"called_ae": ["OTHER", "INGEST"]}, True),
        ({"called_ae": {"not": "INGEST"}}, False),
        ({"certificate": "ab" * 32}, True),
        ({"certificate": "CN=ct1,*"}, True),
        ({"certificate": "DNS:*.example.org"}, True),
        ({"certificate": ["CN=mr1,*", "DNS:mr1.example.org"]}, False),
        ({"listener": 2762}, True),
        ({"listener": "10.0.0.5:2762"}, True),
        ({"listener": "dicom-tls://*"}, True),
        ({"listener": {"not": "dicom://*"}}, True),
        ({"listener": "*:104"}, False),
        ({"sop_class": CT}, True),
        ({"sop_class": "CTImageStorage"}, True),
        ({"sop_class": "CT Image Storage"}, True),
        ({"sop_class": "*SR*"}, False),
        ({"transfer_syntax": EXPLICIT}, True),
        ({"transfer_syntax": "JPEG*"}, False),
        ({"modality": "CT"}, True),
        ({"modality": ["MR", "CT"]}, True),
        ({"modality": {"not": ["MR", "CT"]}}, False),
        ({"modality": {"not": "MR"}}, True),
        ({"station": "CT_ROOM_[12]"}, True),
        ({"institution": "St. Mary"}, True),
        ({"body_part": "*"}, False),
        ({"body_part": {"not": "CHEST"}}, True),
        ({"ImageType": "AXIAL"}, True),
        ({"ImageType": {"not": "DERIVED"}}, True),
        ({"0008,0008": "PRIMARY"}, True),
        ({"SeriesNumber": 12}, True),
        ({"SeriesNumber": {"min": 1, "max": 12}}, True),
        ({"SeriesNumber": {"min": 13}}, False),
        ({"SeriesNumber": {"not": {"max": 10}}}, True),
        ({"Rows": {"min": 512, "max": 1024}}, True),
        ({"Rows": "512"}, True),
        ({"Columns": {"min": 0}}, False),
        ({"modality": "CT", "calling_ae": "MR1"}, False),
        ({"modality": "CT", "calling_ae": "CT1"}, True),
    ],
)
def test_route_takes_what_its_conditions_say(when: dict[str, Any], taken: bool) -> None:
    assert takes(when, instance()) is taken


def test_numbers_are_read_in_the_order_of_bytes_of_the_transfer_syntax() -> None:
    one = instance(BIG_ENDIAN, attributes={ROWS: struct.pack(">H", 512)})
    assert takes({"Rows": 512}, one)


@pytest.mark.parametrize(
    ("character_set", "value"),
    [
        (b"ISO_IR 100", "Krankenhaus Köln".encode("latin-1")),
        (b"ISO_IR 192", "Krankenhaus Köln".encode()),
        (b"", b"Krankenhaus K?ln"),
    ],
)
def test_text_is_read_in_its_character_set(character_set: bytes, value: bytes) -> None:
    one = instance(attributes={CHARACTER_SET: character_set, INSTITUTION: value})
    assert takes({"institution": "Krankenhaus K?ln"}, one)
    assert takes({"institution": "*Köln"}, one) is bool(character_set)


def test_text_of_an_unknown_character_set_is_no_reason_to_fail() -> None:
    one = instance(attributes={CHARACTER_SET: b"KLINGON", INSTITUTION: b"ABC\xff"})
    assert takes({"institution": "ABC*"}, one)


def test_several_routes_take_an_instance_and_each_destination_gets_it_once() -> None:
    routes = [Route(name="all", to=("pacs", "archive")), Route(to=("archive", "ai"), when={"modality": "CT"})]
    routing = Router(routes).route_instance(instance())
    assert routing.destinations == ("pacs", "archive", "ai")
    assert routing.routed == "all, routes[1]"


def test_stop_keeps_later_routes_from_what_it_takes_and_from_nothing_else() -> None:
    routes = [
        Route(name="reports", to=("ris",), when={"sop_class": SR}, stop=True),
        Route(name="rest", to=("pacs",)),
    ]
    assert Router(routes).route_instance(instance(sop_class=SR)).routed == "reports"
    assert Router(routes).route_instance(instance()).routed == "rest"


def test_default_route_takes_only_what_no_other_took_wherever_it_stands() -> None:
    routes = [
        Route(name="else", to=("archive",), default=True),
        Route(name="ct", to=("pacs",), when={"modality": "CT"}),
    ]
    assert Router(routes).route_instance(instance()).destinations == ("pacs",)
    assert Router(routes).route_instance(instance(attributes={MODALITY: b"US"})).destinations == ("archive",)


def test_route_without_destinations_drops_on_purpose_and_says_so() -> None:
    routes = [
        Route(name="scouts", to=(), when={"ImageType": "AXIAL"}, stop=True),
        Route(name="all", to=("pacs",)),
        Route(name="else", to=("pacs",), default=True),
    ]
    routing = Router(routes).route_instance(instance())
    assert routing.destinations == ()
    assert routing.routed == "scouts: forwarded nowhere on purpose"


def test_what_no_route_takes_is_said() -> None:
    assert Router([]).route_instance(instance()).routed == ""
    routing = Router([Route(to=("pacs",), when={"modality": "MR"})]).route_instance(instance())
    assert (routing.destinations, routing.routed) == ((), "no route took it")


def test_only_the_attributes_that_routes_look_at_are_asked_for() -> None:
    assert Router([Route(to=("a",), when={"calling_ae": "CT1"})]).tags == ()
    assert Router([Route(to=("a",), when={"modality": "CT"})]).tags == (MODALITY,)
    assert Router([Route(to=("a",), when={"PatientName": "A*"})]).tags == (CHARACTER_SET, PATIENT_NAME)


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        ("modalty", "CT", "is not known"),
        ("0008,00600", "CT", "is not known"),
        ("TransferSyntaxUID", "1", "is not in the data set"),
        ("PixelData", "1", "no value to compare"),
        ("ReferencedStudySequence", "1", "no value to compare"),
        ("modality", [], "is no condition"),
        ("modality", True, "is no condition"),
        ("modality", {"is": "CT"}, "is no condition"),
        ("Rows", {"min": "1"}, "not both numbers"),
        ("Rows", {"min": 5, "max": 1}, "no number is from 5 to 1"),
    ],
)
def test_condition_that_is_not_understood_is_refused_with_a_remedy(key: str, value: Any, cause: str) -> None:
    with pytest.raises(ConditionError, match=cause) as caught:
        parse_condition(key, value)
    assert caught.value.remedy


def test_one_route_that_holds_is_enough_and_holds_only_its_own_destinations() -> None:
    routes = [
        Route(to=("pacs", "ai")),
        Route(to=("pacs", "research"), when={"modality": "CT"}, hold=True),
        Route(to=("ai",), when={"modality": "MR"}, hold=True),
    ]
    decision = Router(routes).route_instance(instance())
    assert decision.destinations == ("pacs", "ai", "research")
    assert decision.held == {"pacs", "research"}
    assert decision.exclude(["pacs"], "not today").held == {"research"}


def test_priorities_of_the_routes_that_took_the_instance_are_kept_by_destination() -> None:
    routes = [
        Route(to=("pacs", "ai")),
        Route(to=("pacs",), when={"modality": "CT"}, priority="bulk"),
        Route(to=("pacs",), when={"modality": "C*"}, priority="urgent"),
        Route(to=("ai",), when={"modality": "MR"}, priority="urgent"),
    ]
    assert Router(routes).route_instance(instance()).priorities == {"pacs": {"bulk", "urgent"}}
