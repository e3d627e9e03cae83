"""Changed attributes: decide which attributes of a data set change, and to which values.

The decision is pure. It gets raw values of attributes and returns the changes; `ingest.outgoing.coercion`
makes them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ingest.config.attribute_map import AttributeMap, normalize_value
from ingest.config.attribute_values import BINARY, NewValue, pack_numbers
from ingest.dicom.text import SPECIFIC_CHARACTER_SET, decode_text, encode_text
from ingest.errors import RewriteError

UTF_8: Final = b"ISO_IR 192"

_DEFAULT_SETS: Final = frozenset({b"", b"ISO_IR 6"})
"""PS3.3 C.12.1.1.2: the default repertoire, which is ASCII."""
_PADDING: Final = b" \0"
_CHARACTER_TEXT: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})


@dataclass(frozen=True, slots=True)
class WantedChanges:
    """Changes of attributes that a destination asks for.

    Attributes:
        values: New values for each instance.
        removed: Attributes to remove.
        map: New values for some instances, which count more than `values`; None without a map.
        needs_match: Whether an instance that no line of the map matches must not be sent.
        keeps_originals: Whether the Original Attributes Sequence gets the previous values.
        system: Value for Modifying System (0400,0563), in ASCII.
    """

    values: tuple[NewValue, ...] = ()
    removed: frozenset[int] = frozenset()
    map: AttributeMap | None = None
    needs_match: bool = False
    keeps_originals: bool = True
    system: str = ""

    @property
    def tags(self) -> frozenset[int]:
        """Attributes whose values the decision needs."""
        matched = self.map.matched if self.map is not None else ()
        rows = self.map.rows.values() if self.map is not None else ()
        mapped = {value.tag for row in rows for value in row}
        listed = {value.tag for value in self.values}
        return frozenset({SPECIFIC_CHARACTER_SET, *matched, *mapped, *listed, *self.removed})


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """One attribute that changes.

    Attributes:
        tag: The attribute.
        vr: VR of the new value; empty if it is removed.
        before: Its raw value; None if the data set lacks it.
        after: Its new raw value without padding; None if it is removed.
    """

    tag: int
    vr: str
    before: bytes | None
    after: bytes | None


def decide_changes(
    wanted: WantedChanges,
    present: Mapping[int, bytes],
    order: str,
    is_ascii: Callable[[], bool] = lambda: False,
) -> list[AttributeChange]:
    """Decide what changes in a data set, in order of tags. An attribute that has its value already stays.

    Args:
        wanted: What the destination asks for.
        present: Raw values of those of `wanted.tags` that the data set has.
        order: Byte order of binary numbers, "<" or ">".
        is_ascii: Whether the text of the data set is ASCII, as it has to be before it becomes UTF-8.

    Raises:
        RewriteError: The data set's character set lacks a character, or no line of the map matches.
    """
    # INVARIANT 10: decisions are pure
    character_set = present.get(SPECIFIC_CHARACTER_SET, b"")
    values = {value.tag: value for value in (*wanted.values, *_find_mapped(wanted, present))}
    changes = {
        tag: AttributeChange(tag, "", present[tag], None)
        for tag in wanted.removed - values.keys()
        if tag in present
    }
    encoded = {tag: _encode(value, character_set, order) for tag, value in values.items()}
    if None in encoded.values():
        lacking = next(tag for tag, raw in encoded.items() if raw is None)
        if character_set.strip(_PADDING) not in _DEFAULT_SETS or not is_ascii():
            raise RewriteError(
                f"the new value of {name_tag(lacking)} has characters that the character set of the data set "
                f"({character_set.decode('ascii', 'replace').strip(' ') or 'ASCII'}) lacks"
            )
        # ASCII text is UTF-8 too, so all other text of the data set keeps its meaning.
        before = present.get(SPECIFIC_CHARACTER_SET)
        changes[SPECIFIC_CHARACTER_SET] = AttributeChange(SPECIFIC_CHARACTER_SET, "CS", before, UTF_8)
        encoded = {tag: _encode(value, UTF_8, order) for tag, value in values.items()}
    for tag, value in values.items():
        found, raw = present.get(tag), encoded[tag]
        if found is None or raw is None or not _is_same(value.vr, found, raw):
            changes[tag] = AttributeChange(tag, value.vr, found, raw)
    return [changes[tag] for tag in sorted(changes)]


def _find_mapped(wanted: WantedChanges, present: Mapping[int, bytes]) -> tuple[NewValue, ...]:
    """Return the new values of the map's line for a data set."""
    if wanted.map is None:
        return ()
    character_set = present.get(SPECIFIC_CHARACTER_SET, b"")
    key = tuple(
        normalize_value(decode_text(present.get(tag, b""), character_set, is_name=tag == 0x0010_0010))
        for tag in wanted.map.matched
    )
    found = wanted.map.rows.get(key)
    if found is None and wanted.needs_match:
        names = ", ".join(map(name_tag, wanted.map.matched))
        raise RewriteError(f"no line of the map has its {names}")
    return found or ()


def _encode(value: NewValue, character_set: bytes, order: str) -> bytes | None:
    """Encode a value without padding; None if the character set lacks a character."""
    if value.vr in BINARY:
        return pack_numbers(value.vr, value.text, order)
    if value.vr in _CHARACTER_TEXT:
        return encode_text(value.text, character_set, is_name=value.vr == "PN")
    return value.text.encode("ascii")


def _is_same(vr: str, found: bytes, raw: bytes) -> bool:
    return found == raw if vr in BINARY else found.rstrip(_PADDING) == raw.rstrip(_PADDING)


def name_tag(tag: int) -> str:
    """Return the keyword of an attribute, or its tag in parentheses."""
    from ingest.dicom import registry  # noqa: PLC0415 - slow to import, and most nodes change nothing

    return registry.find_keyword(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
