"""Data sets that are not what their command said, cannot be read, or would lead out of the store."""

import re
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.dicom.part10 import read_file_meta
from tests.faults.caller import Caller, data_pdus, new_uid, with_titles
from tests.faults.watch import Watch, known, names, nothing_received, receive, row
from tests.support.instances import CT, IMPLICIT, Made, element
from tests.support.nodes import Node

DEFLATED_CONTEXT, MR_CONTEXT = 7, 5

KEPT = re.compile(
    r"store/(no-study|x[0-9a-f]{40}|[0-9][0-9.]{0,63})/(no-series|x[0-9a-f]{40}|[0-9][0-9.]{0,63})/"
    r"(x[0-9a-f]{40}|[0-9][0-9.]{0,63})\.dcm"
    r"|quarantine/[0-9A-Za-z._-]+\.dcm"
    r"|run/(callers|refusals)/\d+\.json|run/seen/[0-9a-f]{32}\.json|run/metrics/node"
    r"|spool/(id|L\d+/lock)|run/[^/]+|queue/.*|ledger\.db(-wal|-shm|\.lock)?|format\.json"
    r"|(store|quarantine)/\.incoming/.*"
)
"""Every name that a node may give to a file of its data folder."""


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive())


@pytest.fixture(scope="module")
def strict(start_node: Callable[..., Node]) -> Node:
    """A node that keeps nothing that it refused."""
    return start_node(receive=receive(quarantine=False))


@pytest.fixture
def caller(node: Node) -> Iterator[Caller]:
    with Caller.tls(node) as caller:
        caller.associate()
        yield caller


def other_uid() -> tuple[Made, int]:
    return Made(sop=new_uid(), sop_in_data_set="1.2.3.4.5"), 1


def other_class() -> tuple[Made, int]:
    """The data set is of a CT, the command and its context of an MR."""
    return Made(sop=new_uid(), syntax=IMPLICIT), MR_CONTEXT


def longer_uid() -> tuple[Made, int]:
    made = Made(sop=new_uid()[:40])
    return Made(sop=made.sop, sop_in_data_set=f"{made.sop}.1"), 1


def escaping_uid() -> tuple[Made, int]:
    return Made(sop=new_uid(), sop_in_data_set="../../../../escaped"), 1


def far_away() -> tuple[Made, int]:
    """The UID lies behind more than is read at first."""
    made = Made(sop=new_uid())
    return _Shifted(sop=made.sop, sop_in_data_set="1.2.3.4.5"), 1


class _Shifted(Made):
    @property
    def data_set(self) -> bytes:
        return element(0x0008, 0x0001, "UN", bytes(200_000)) + super().data_set


MISMATCHES = [other_uid, other_class, longer_uid, escaping_uid, far_away]


@pytest.mark.parametrize("make", MISMATCHES)
def test_uids_unlike_the_command_get_a900_and_the_copy_is_quarantined(
    node: Node, watch: Watch, caller: Caller, make: Callable[[], tuple[Made, int]]
) -> None:
    made, context_id = make()
    response = caller.store(made, context_id)
    assert response.status == 0xA900
    assert "UID differs" in response.error_comment
    assert caller.echo() == 0
    watch.event("instance_refused", status="A900", sop_instance=made.sop, calling_ae="CALLER")
    quarantined(node, made.sop, made.data_set, "A900")


def quarantined(node: Node, sop: str, data: bytes, status: str) -> None:
    """One row, one file with all the bytes that came, and nothing anywhere else."""
    kept = row(node, sop, "quarantined")
    assert status in kept["note"]
    path = node.data / "quarantine" / kept["store_key"]
    with path.open("rb") as file:
        meta, offset = read_file_meta(file.fileno())
        file.seek(offset)
        assert file.read() == data
    assert (meta.sop_instance_uid, meta.calling_ae) == (sop, "CALLER")
    assert kept["size"] == path.stat().st_size
    assert known(node, sop) == [("quarantined",)]
    nothing_received(node)


def deflated(data: bytes) -> bytes:
    squeezer = zlib.compressobj(wbits=-15)
    return squeezer.compress(data) + squeezer.flush()


UNREADABLE = {
    "noise": (1, bytes(range(256)) * 40),
    "noise in implicit": (MR_CONTEXT, bytes(range(1, 256)) * 40),
    "nothing": (1, b""),
    "less than an element": (MR_CONTEXT, b"\x10\0\x10"),
    "implicit, where explicit was agreed": (1, Made(syntax=IMPLICIT).data_set),
    "explicit, where deflated was agreed": (DEFLATED_CONTEXT, Made().data_set),
    "deflated and cut": (DEFLATED_CONTEXT, deflated(Made(pixels=bytes(range(256)) * 40).data_set)[:20]),
    "cut within the SOP instance UID": (1, Made(sop="1.2.3.4.5.6.7.8").data_set[:50]),
    "a UID of undefined length": (1, b"\x08\0\x16\0UN\0\0\xff\xff\xff\xff" + bytes(100)),
    "sequences without an end to their depth": (
        1,
        (b"\x08\0\x06\0SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * 5000,
    ),
}
"""Context and data set."""


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_data_set_gets_c000_and_the_copy_is_quarantined(
    node: Node, watch: Watch, caller: Caller, case: str
) -> None:
    context_id, data = UNREADABLE[case]
    sop = new_uid()
    caller.begin_store(sop, context_id)
    caller.send(data_pdus(context_id, data))
    assert caller.response().status == 0xC000
    assert caller.echo() == 0
    watch.event("instance_refused", status="C000", sop_instance=sop)
    quarantined(node, sop, data, "C000")


def test_a_data_set_that_inflates_to_far_too_much_costs_little_and_is_kept(
    node: Node, caller: Caller
) -> None:
    bomb = deflated(element(0x0008, 0x0001, "UN", bytes(90_000_000)) + Made().data_set)
    sop = new_uid()
    began = time.monotonic()
    caller.begin_store(sop, DEFLATED_CONTEXT)
    caller.send(data_pdus(DEFLATED_CONTEXT, bomb))
    assert caller.response().status == 0, "its UIDs are not in the first bytes, so the persist worker decides"
    kept = row(node, sop, "stored")
    assert "not all attributes were found" in kept["note"]
    assert time.monotonic() - began < 30


def test_a_data_set_that_begins_with_group_0002_is_refused(node: Node, watch: Watch, caller: Caller) -> None:
    """pydicom would take its first elements for the File Meta of the stored file."""
    for forged in (
        element(0x0002, 0x0003, "UI", b"1.2.3.4"),
        element(0x0002, 0x0010, "UI", b"1.2.840.10008.1.2"),
    ):
        sop = new_uid()
        caller.begin_store(sop, 1)
        caller.send(data_pdus(1, forged + Made(sop=sop).data_set))
        assert caller.response().status == 0xC000
        assert known(node, sop) in ([], [("quarantined",)])
    watch.event("instance_refused", status="C000", reason="the data set begins with group 0002")


def test_without_quarantine_nothing_of_what_was_refused_is_kept(strict: Node) -> None:
    with Caller.tls(strict) as caller:
        caller.associate()
        made, context_id = other_uid()
        assert caller.store(made, context_id).status == 0xA900
        caller.begin_store(made.sop)
        caller.send(data_pdus(1, UNREADABLE["noise"][1]))
        assert caller.response().status == 0xC000
        good = Made(sop=new_uid())
        assert caller.store(good).status == 0
        caller.release()
    row(strict, good.sop, "stored")
    nothing_received(strict)
    assert not known(strict, made.sop)
    assert not names(strict.data / "quarantine", lambda path: ".incoming" in path.parts)


@pytest.mark.parametrize(
    ("study", "series", "key"),
    [
        (None, "1.2.4", "no-study/1.2.4/{}.dcm"),
        ("1.2.3", None, "1.2.3/no-series/{}.dcm"),
        (None, None, "no-study/no-series/{}.dcm"),
        ("", "", "no-study/no-series/{}.dcm"),
    ],
)
def test_an_instance_without_study_or_series_is_stored_and_the_ledger_says_so(
    node: Node, caller: Caller, study: str | None, series: str | None, key: str
) -> None:
    made = Made(sop=new_uid(), study=study, series=series)
    assert caller.store(made).status == 0
    kept = row(node, made.sop, "stored")
    assert kept["store_key"] == key.format(made.sop)
    assert (node.store / kept["store_key"]).read_bytes().endswith(made.data_set)
    for name, uid in (("Study", study), ("Series", series)):
        assert (f"no {name} Instance UID" in kept["note"]) == (not uid)


ESCAPES = [
    "../../../../escaped",
    "..",
    ".",
    "/tmp/escaped",
    "1.2/../../../../escaped",
    "1.2.3\0/../../escaped",
    "1.2.3\n",
    "\0",
    "1.2.3 ; rm -rf",
    "1." * 5000 + "1",
    "../" * 3333,
    "a" * 300,
    "CON",
    "~root",
    ".incoming",
    "\x7f\x1b[2J",
    "1.2.3\\4.5.6",
]


@pytest.mark.parametrize("uid", ESCAPES, ids=range(len(ESCAPES)))
def test_uids_made_to_escape_never_make_a_path_outside_of_the_store(
    node: Node, caller: Caller, uid: str
) -> None:
    outside = names(node.folder.parent, lambda path: path.is_relative_to(node.folder))
    instances = [
        Made(sop=new_uid(), study=uid),
        Made(sop=new_uid(), series=uid),
        Made(sop=new_uid(), study=uid, series=uid, syntax=IMPLICIT),
    ]
    statuses = [caller.store(made, 1).status for made in instances[:2]]
    inside = Made(sop=new_uid(), sop_in_data_set=uid)
    refused = caller.store(inside).status
    assert statuses == [0, 0]
    assert refused in {0xA900, 0}  # no UID at all (padding alone) contradicts nothing
    for made in instances[:2]:
        row(node, made.sop, "stored")
        assert node.stored()[made.sop].read_bytes().endswith(made.data_set)
    row(node, inside.sop, "stored" if refused == 0 else "quarantined")
    nothing_received(node)
    only_names_of_ours(node)
    assert names(node.folder.parent, lambda path: path.is_relative_to(node.folder)) == outside
    assert not Path("/tmp/escaped").exists()


def only_names_of_ours(node: Node) -> None:
    found = {str(path.relative_to(node.data)) for path in names(node.data)}
    assert found
    assert not {name for name in found if not KEPT.fullmatch(name)}


@pytest.mark.parametrize(
    "calling", [b"../../../escape", b"/etc/passwd", b"%s%n%x", b"$(reboot)", b"{study_uid}"]
)
def test_ae_titles_made_to_escape_are_only_text(node: Node, calling: bytes) -> None:
    made = Made(sop=new_uid())
    with Caller.tls(node) as caller:
        assert caller.ask(with_titles(calling, b"../..//../INGEST"))[0] == 2
        assert caller.store(made).status == 0
        caller.release()
    row(node, made.sop, "stored")
    (found,) = node.query("SELECT calling_ae, called_ae FROM instances WHERE sop_instance_uid = ?", made.sop)
    assert found == (calling.decode(), "../..//../INGEST")
    only_names_of_ours(node)


def test_nothing_of_a_data_set_is_in_the_log(node: Node, caller: Caller) -> None:
    name = b"LOGGED^NEVER"
    secret = element(0x0008, 0x0016, "UI", CT.encode()) + element(0x0010, 0x0010, "PN", name)
    for data in (secret, name * 40, element(0x0008, 0x0018, "UI", name)):
        caller.begin_store(new_uid())
        caller.send(data_pdus(1, data))
        caller.response()
    assert caller.echo() == 0
    nothing_received(node)
    assert "LOGGED" not in node.log
