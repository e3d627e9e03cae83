"""Any bytes are a command set or one PeerError; any command set comes back from its bytes."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from ingest.ext.command import decode_command, encode_command
from ingest.ext.errors import PeerError
from tests.support.properties import examples

EXAMPLES = examples(100)

numbers = st.integers(0, 0xFFFF)
uids = st.text("0123456789.", max_size=64)
titles = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=16).map(str.strip)
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=64).map(str.rstrip)
tags = st.lists(st.integers(0, 0xFFFFFFFF), max_size=5)

command_sets = st.fixed_dictionaries(
    {"CommandField": numbers},
    optional={
        "AffectedSOPClassUID": uids,
        "RequestedSOPInstanceUID": uids,
        "MessageID": numbers,
        "MessageIDBeingRespondedTo": numbers,
        "Status": numbers,
        "MoveDestination": titles,
        "MoveOriginatorApplicationEntityTitle": titles,
        "ErrorComment": texts,
        "OffendingElement": tags,
        "AttributeIdentifierList": tags,
        "CommandDataSetType": numbers,
    },
)


@EXAMPLES
@given(command_sets)
def test_command_set_comes_back_from_its_bytes(elements: dict[str, object]) -> None:
    wire = encode_command(elements)
    assert decode_command(wire) == {**elements, "CommandGroupLength": len(wire) - 12}
    assert encode_command(decode_command(wire)) == wire


elements = st.builds(
    lambda group, number, value, lie: (
        group.to_bytes(2, "little")
        + number.to_bytes(2, "little")
        + ((len(value) + lie) % (1 << 32)).to_bytes(4, "little")
        + value
    ),
    st.sampled_from([0] * 20 + [2, 8]),
    st.sampled_from(
        [0, 2, 3, 0x100, 0x110, 0x600, 0x800, 0x900, 0x901, 0x902, 0x1000, 0x1005, 0x1031, 0x9999]
    ),
    st.binary(max_size=12),
    st.sampled_from([0] * 20 + [1, -1, 0xFFFFFFFF]),
)


@EXAMPLES
@given(st.binary(max_size=200) | st.lists(elements, max_size=6).map(b"".join))
def test_any_bytes_are_a_command_set_or_one_error(wire: bytes) -> None:
    with contextlib.suppress(PeerError):
        decoded = {
            keyword: value
            for keyword, value in decode_command(wire).items()
            if not isinstance(value, PeerError)
        }
        assert decode_command(encode_command(decoded)).keys() == decoded.keys() | {"CommandGroupLength"}
