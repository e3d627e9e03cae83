"""Durable before Success, as the kernel sees it: bytes, name and folder, and only then the response."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path

import pytest

from ingest.dicom import dimse
from tests.faults.caller import Caller, command, data_pdus, new_uid
from tests.faults.watch import receive
from tests.support.instances import CT, Made
from tests.support.nodes import Node, eventually
from tests.support.traces import Call, Trace, strace

READY = "/ready"
KINDS = {"plain": Caller.plain, "tls": Caller.tls}


@pytest.fixture(scope="module")
def durable(start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive(processes=1, durability="fsync"))


@contextmanager
def traced(node: Node, output: Path) -> Iterator[None]:
    """What the node's only listener asks of the kernel meanwhile."""
    (listener,) = node.children("ingest-listen")
    command = strace(output, "-yy", "-s", "20000", "-p", str(listener.pid))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.readline()
    if "attached" not in said:
        process.communicate()
        reason = f"strace may not look at another process: {said.strip()}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    try:
        yield
    finally:
        process.terminate()
        process.communicate()


def trace(node: Node, output: Path, kind: str, many: int) -> list[str]:
    """Store one after the other, or all before the first is answered; their UIDs in this order."""
    uids = [new_uid() for _ in range(many)]
    with KINDS[kind](node) as caller:
        caller.associate()
        with traced(node, output):
            if kind == "tls":
                for uid in uids:
                    assert caller.store(Made(sop=uid, pixels=bytes(100_000))).status == 0
            else:
                requests = [
                    command(1, dimse.encode_store_request(at, CT, uid)) for at, uid in enumerate(uids)
                ]
                caller.send(
                    *(
                        request + data_pdus(1, Made(sop=uid).data_set)
                        for request, uid in zip(requests, uids, strict=True)
                    )
                )
                assert {caller.response().status for _ in uids} == {0}
            assert caller.echo() == 0  # by now strace has seen all before it return
        caller.release()
    return uids


def content(call: Call) -> bytes:
    """The bytes that it was given, as strace shows them."""
    text = re.findall(r'"((?:[^"\\]|\\.)*)"', call.arguments)[0]
    return text.encode().decode("unicode_escape").encode("latin-1")


def check(output: Path, uids: list[str], *, encrypted: bool) -> None:
    """That each instance was durable before its response left.

    Raises:
        AssertionError: It was not.
    """
    found = Trace.read(output)
    entries = sorted(set(re.findall(r"/partial/([0-9a-f]+-[0-9a-f]+)>", output.read_text())))
    assert len(entries) == len(uids), "an instance whose bytes were not made durable"
    answers = [call for call in found.calls("sendto", "write", "writev") if "<TCP:[" in call.arguments]
    for at, (entry, uid) in enumerate(zip(entries, uids, strict=True)):
        if encrypted:
            answer = answers[at]
        else:
            (answer,) = (call for call in answers if uid.encode() in content(call))
        assert found.promised(entry, READY) < answer.start, "answered before it was durable"


@pytest.mark.parametrize(("kind", "many"), [("tls", 5), ("plain", 1), ("plain", 40)])
def test_bytes_name_and_folder_are_durable_before_the_response_leaves(
    kind: str, many: int, durable: Node, tmp_path: Path
) -> None:
    output = tmp_path / "trace"
    uids = trace(durable, output, kind, many)
    check(output, uids, encrypted=kind == "tls")
    eventually(lambda: set(uids) <= set(durable.stored()), 20)


def test_page_cache_fails_this_check(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node = start_node(receive=receive(processes=1, durability="page-cache"))
    uids = trace(node, tmp_path / "trace", "tls", 1)
    with pytest.raises(AssertionError, match="bytes were not made durable"):
        check(tmp_path / "trace", uids, encrypted=True)


SYNCED = "7 fdatasync(17</spool/L0/partial/18ea-0>) = 0"
RENAMED = '7 renameat(10</spool/L0/partial>, "18ea-0", 11</spool/L0/ready>, "18ea-0.dcm") = 0'
FOLDER = "7 fsync(11</spool/L0/ready>) = 0"
ANSWER = '5 sendto(16<TCP:[127.0.0.1:104->127.0.0.1:4711]>, "\\x17", 1, 0, NULL, 0) = 1'
RIGHT = (SYNCED, RENAMED, FOLDER, ANSWER)


def as_told(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def test_the_right_order_passes_this_check(tmp_path: Path) -> None:
    output = tmp_path / "trace"
    output.write_text(as_told(*RIGHT))
    check(output, ["1.2.3"], encrypted=True)
    begun = [f"7 {FOLDER[2:].partition(')')[0]} <unfinished ...>", "7 <... fsync resumed>) = 0"]
    output.write_text(as_told(SYNCED, RENAMED, *begun, ANSWER))
    check(output, ["1.2.3"], encrypted=True)
    output.write_text(as_told(SYNCED, RENAMED, begun[0], ANSWER, begun[1]))
    with pytest.raises(AssertionError, match="answered before"):
        check(output, ["1.2.3"], encrypted=True)


@pytest.mark.parametrize("order", [order for order in permutations(RIGHT) if order != RIGHT])
def test_every_other_order_fails_this_check(order: tuple[str, ...], tmp_path: Path) -> None:
    output = tmp_path / "trace"
    output.write_text(as_told(*order))
    with pytest.raises(AssertionError):
        check(output, ["1.2.3"], encrypted=True)


@pytest.mark.parametrize("missing", [SYNCED, RENAMED, FOLDER])
@pytest.mark.parametrize("failed", [False, True])
def test_a_call_that_is_missing_or_failed_fails_this_check(
    missing: str, failed: bool, tmp_path: Path
) -> None:
    output = tmp_path / "trace"
    instead = [missing.removesuffix("0") + "-1 EIO (Input/output error)"] if failed else []
    lines = [line for each in RIGHT for line in (instead if each == missing else [each])]
    output.write_text(as_told(*lines))
    with pytest.raises(AssertionError):
        check(output, ["1.2.3"], encrypted=True)


def check_segments(output: Path, uids: list[str]) -> None:
    """That each instance was durable in a segment, and that under its name, before its response left.

    Raises:
        AssertionError: It was not.
    """
    found = Trace.read(output)
    named = found.one("renameat", '.seg"')
    folder = min(call.end for call in found.calls("fsync") if call.start > named.end)
    for uid in uids:
        (written,) = (call for call in found.calls("pwritev") if uid.encode() in contents(call))
        assert "/segments/" in written.arguments
        assert folder < written.start, "written before the segment's name is durable"
        synced = [
            call.end
            for call in found.calls("fdatasync")
            if ".seg>" in call.arguments and call.start > written.end
        ]
        answers = [call for call in found.calls("sendto") if "<TCP:[" in call.arguments]
        (answer,) = (call for call in answers if uid.encode() in contents(call))
        assert min(synced, default=answer.end) < answer.start, "answered before it was durable"


def contents(call: Call) -> bytes:
    """All that it was given."""
    texts = re.findall(r'"((?:[^"\\]|\\.)*)"', call.arguments)
    return b"".join(text.encode().decode("unicode_escape").encode("latin-1") for text in texts)


@pytest.mark.parametrize("many", [1, 40])
def test_a_segment_is_durable_before_the_response_leaves(
    many: int, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node(receive=receive(processes=1, durability="fsync", segment_max_bytes=65536))
    uids = trace(node, tmp_path / "trace", "plain", many)
    check_segments(tmp_path / "trace", uids)
    eventually(lambda: set(uids) <= set(node.stored()), 20)


def test_a_segment_that_is_not_synced_fails_this_check(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node(receive=receive(processes=1, durability="fsync", segment_max_bytes=65536))
    uids = trace(node, tmp_path / "trace", "plain", 1)
    lines = (tmp_path / "trace").read_text().splitlines(keepends=True)
    (tmp_path / "trace").write_text("".join(line for line in lines if "fdatasync" not in line))
    with pytest.raises(AssertionError, match="answered before it was durable"):
        check_segments(tmp_path / "trace", uids)
