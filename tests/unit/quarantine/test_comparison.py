"""Comparison of an instance in quarantine with the stored one, on files that a real worker set aside."""

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingest.cli import main
from ingest.errors import NotQuarantinedError
from ingest.operations.comparison import DIFFERENCES_MAX, SHORT_BYTES, compare_quarantined
from tests.support.instances import Made, element
from tests.support.persisting import Site

Sites = Callable[..., Site]


def undefined_sequence(group: int, number: int, *items: bytes) -> bytes:
    """A sequence of undefined length in Explicit VR Little Endian (PS3.5 7.5.1)."""
    parts = [group.to_bytes(2, "little"), number.to_bytes(2, "little"), b"SQ\0\0\xff\xff\xff\xff"]
    for item in items:
        parts += [b"\xfe\xff\x00\xe0", len(item).to_bytes(4, "little"), item]
    return b"".join([*parts, b"\xfe\xff\xdd\xe0\0\0\0\0"])


@dataclass(frozen=True)
class Named(Made):
    """An instance with further elements of groups 0010 and 0040."""

    more: bytes = b""
    after: bytes = b""

    @property
    def data_set(self) -> bytes:
        plain = super().data_set
        at, end = plain.index(b"\x20\x00\x0d\x00"), plain.index(b"\xe0\x7f\x10\x00")
        return plain[:at] + self.more + plain[at:end] + self.after + plain[end:]


def name(text: str) -> bytes:
    return element(0x0010, 0x0010, "PN", text.encode())


def set_aside(site: Site, first: Made, second: Made) -> int:
    for made in (first, second):
        site.receive(made)
        site.work()
    return next(row.id for row in site.instances() if row.state == "quarantined")


def test_attributes_that_differ_are_side_by_side_also_in_sequences_and_long_values_by_digest(
    make_persist_site: Sites,
) -> None:
    pixels = [bytes([value]) * (3 * SHORT_BYTES) for value in (1, 2)]
    steps = [element(0x0008, 0x0050, "SH", text) for text in (b"A1", b"A2")]
    same = element(0x0010, 0x0020, "LO", b"ID1 ")
    first = Named(
        pixels=pixels[0],
        more=name("Muller^Hans") + same + element(0x0010, 0x0040, "CS", b"M "),
        after=undefined_sequence(0x0040, 0x0275, steps[0]),
    )
    second = Named(
        pixels=pixels[1],
        more=name("Meyer^Hans") + same,
        after=undefined_sequence(0x0040, 0x0275, steps[1], steps[0]),
    )
    site = make_persist_site()
    number = set_aside(site, first, second)
    found = compare_quarantined(site.config, number)
    digests = [f"{len(each)} bytes, sha256 {hashlib.sha256(each).hexdigest()}" for each in pixels]
    assert [
        (each.path, each.keyword, each.vr, each.quarantined, each.stored) for each in found.differences
    ] == [
        ("(0010,0010)", "PatientName", "PN", "Meyer^Hans", "Muller^Hans"),
        ("(0010,0040)", "PatientSex", "CS", None, "M"),
        ("(0040,0275)[1].(0008,0050)", "AccessionNumber", "SH", "A2", "A1"),
        ("(0040,0275)", "RequestAttributesSequence", "SQ", "2 items", "1 items"),
        ("(7FE0,0010)", "PixelData", "OB", digests[1], digests[0]),
    ]
    assert (found.kind, found.is_complete, found.fault) == ("conflict", True, "")
    assert found.stored is not None
    assert "SOP instance UID" in found.reason
    assert json.loads(json.dumps(found.to_json()))["differences"][0]["quarantined"] == "Meyer^Hans"


def test_many_differences_are_bounded(make_persist_site: Sites) -> None:
    private = [
        element(0x0011, 0x1000 + number, "LO", value)
        for value in (b"a ", b"b ")
        for number in range(DIFFERENCES_MAX + 20)
    ]
    half = len(private) // 2
    site = make_persist_site()
    number = set_aside(site, Named(more=b"".join(private[:half])), Named(more=b"".join(private[half:])))
    found = compare_quarantined(site.config, number)
    assert (len(found.differences), found.is_complete) == (DIFFERENCES_MAX, False)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"DICM"])
def test_damaged_file_is_reported_and_raises_nothing(make_persist_site: Sites, damage: bytes) -> None:
    site = make_persist_site()
    number = set_aside(site, Named(more=name("A")), Named(more=name("B")))
    (path,) = site.quarantined()
    path.write_bytes(path.read_bytes()[:40] + damage)
    found = compare_quarantined(site.config, number)
    assert found.differences == ()
    assert "cannot be read" in found.fault


def test_id_that_is_not_in_quarantine_is_refused(make_persist_site: Sites) -> None:
    site = make_persist_site()
    set_aside(site, Named(more=name("A")), Named(more=name("B")))
    for number in (1, 99):
        with pytest.raises(NotQuarantinedError, match=f"{number}: not in quarantine"):
            compare_quarantined(site.config, number)


def test_command_shows_both_values(make_persist_site: Sites, tmp_path: Path) -> None:
    site = make_persist_site()
    number = set_aside(site, Named(more=name("Muller^Hans")), Named(more=name("Meyer^Hans")))
    path = tmp_path / "ingest.toml"
    path.write_text(f'[node]\ndata_dir = "{site.config.data_dir}"\n')
    done = CliRunner().invoke(main, ["quarantine", "compare", "-c", str(path), str(number)])
    assert done.exit_code == 0, done.output
    assert "(0010,0010)  PatientName  PN  Meyer^Hans   Muller^Hans" in done.output


def test_data_set_that_inflates_to_much_memory_is_not_compared(tmp_path: Path) -> None:
    from ingest.errors import PeerError
    from ingest.operations.comparison import INFLATED_BYTES_MAX, _require_inflatable

    path, deflater = tmp_path / "bomb", zlib.compressobj(wbits=-zlib.MAX_WBITS)
    chunk = bytes(1 << 20)
    path.write_bytes(b"".join(deflater.compress(chunk) for _ in range(33)) + deflater.flush())
    assert INFLATED_BYTES_MAX <= 32 << 20
    with path.open("rb") as file, pytest.raises(PeerError, match="inflates to more than 32 MB"):
        _require_inflatable(file.fileno(), 0)


def test_one_comparison_at_a_time_uses_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest.operations import comparison

    monkeypatch.setattr(comparison, "WAIT_SECONDS", 0.1)
    with (
        comparison._one_at_a_time(),
        pytest.raises(comparison._UnreadableError, match="under way"),
        comparison._one_at_a_time(),
    ):
        pass
    with comparison._one_at_a_time():
        pass
