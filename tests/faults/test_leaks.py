"""Many associations of every end: nothing of them stays in a listener, neither descriptors nor memory."""

from collections.abc import Callable

import psutil
import pytest

from ingest.dicom import dimse, wire
from tests.faults.caller import UNRECOGNIZED, Caller, command, connect, data_pdus, new_uid
from tests.faults.watch import nothing_received, receive
from tests.support.instances import CT, Made
from tests.support.nodes import Node, eventually

ROUND = 12
"""Of each end in a round."""

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module", params=["fsync", "page-cache"])
def node(request: pytest.FixtureRequest, start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive(processes=1, durability=request.param))


def store_and_release(caller: Caller) -> None:
    assert caller.store(Made(sop=new_uid(), pixels=bytes(300_000))).status == 0
    caller.release()


def abort(caller: Caller) -> None:
    assert caller.store(Made(sop=new_uid())).status == 0
    caller.send(wire.encode_abort(0, 0))


def reset_in_mid_image(caller: Caller) -> None:
    caller.begin_store(new_uid())
    caller.send(data_pdus(1, Made(pixels=bytes(300_000)).data_set, last=False))
    caller.reset()


def close_in_mid_image(caller: Caller) -> None:
    caller.begin_store(new_uid())
    caller.send(data_pdus(1, bytes(50_000), last=False))


def abort_in_mid_image(caller: Caller) -> None:
    caller.begin_store(new_uid())
    caller.send(data_pdus(1, Made(pixels=bytes(100_000)).data_set, last=False), wire.encode_abort(0, 0))


def reset_before_the_answers(caller: Caller) -> None:
    for number in range(6):
        made = Made(sop=new_uid())
        caller.send(command(1, dimse.encode_store_request(number, CT, made.sop)), data_pdus(1, made.data_set))
    caller.reset()


def break_the_protocol(caller: Caller) -> None:
    caller.begin_store(new_uid())
    caller.send(b"\x99" * 100)
    assert wire.decode_abort(caller.read_pdu()) == wire.Abort(2, UNRECOGNIZED)


def leave_at_once(caller: Caller) -> None:
    caller.reset()


ENDS = (
    store_and_release,
    abort,
    reset_in_mid_image,
    close_in_mid_image,
    abort_in_mid_image,
    reset_before_the_answers,
    break_the_protocol,
    leave_at_once,
)


def play(node: Node) -> None:
    """A round of every end, with TLS and without, and of connections that never become associations."""
    for _ in range(ROUND):
        for end in ENDS:
            for open_one in (Caller.tls, Caller.plain):
                with open_one(node) as caller:
                    caller.associate()
                    end(caller)
        with Caller.tls(node) as caller:
            caller.reset()
        with connect(node.tls_port) as sock:
            sock.sendall(b"\x16\x03\x01\x00\x05\x01\xff\xff")


@pytest.mark.slow
def test_no_end_of_an_association_leaves_anything_in_the_listener(node: Node) -> None:
    (child,) = node.children("ingest-listen")
    listener = psutil.Process(child.pid)

    def at_rest() -> tuple[int, int]:
        nothing_received(node)
        eventually(lambda: not listener.net_connections("tcp") or _idle(listener), 10, "no connection")
        return listener.num_fds(), listener.memory_full_info().pss

    for _ in range(2):
        play(node)  # until all that is kept for good is there
    files, memory = at_rest()
    for _ in range(4):
        play(node)
    files_then, memory_then = at_rest()
    assert files_then == files
    # One association's TLS alone is more than 40 KiB: of these 800, nothing.
    assert memory_then - memory < 2 * MEBIBYTE
    eventually(lambda: not node.partials(), 5)


def _idle(listener: psutil.Process) -> bool:
    return all(found.status != "ESTABLISHED" for found in listener.net_connections("tcp"))
