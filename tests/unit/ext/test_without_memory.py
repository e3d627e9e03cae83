"""Every allocation fails once: nothing is left in a state that later code runs into.

Each case runs in a process of its own with `_testcapi.set_nomemory`, which has the nth allocation fail: an
error may come of it, a crash may not, and what works afterwards works as if nothing had been.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("_testcapi") is None, reason="this Python comes without _testcapi"
)

HEAD = """
import os, select, socket, sys, time
from pathlib import Path
from _testcapi import remove_mem_hooks, set_nomemory

def each(run, check, most=400):
    "Have the 1st, 2nd, … allocation fail until none does, and look at the state each time."
    failed = 0
    for number in range(most):
        state, error = None, None
        set_nomemory(number, number + 1)
        try:
            state = run()
        except MemoryError as raised:
            error = raised
        except Exception as raised:
            error = raised
        finally:
            remove_mem_hooks()
        check(error)
        failed += error is not None
        if error is None and number > 60:
            break
    assert failed, "nothing failed"
"""

CASES = {
    "poller": """
from ingest.ext.event_loop import (READABLE, EventLoop)
poller, told = EventLoop(), []
ends = [socket.socketpair() for _ in range(60)]
function = lambda: told.append(1)
for number, (near, far) in enumerate(ends):
    far.send(b"x")
    set_nomemory(number % 30, number % 30 + 1)
    try:
        # A number far beyond what was watched before: the list of them has to grow.
        poller.watch(os.dup2(near.fileno(), 500 + 40 * number), function, READABLE)
    except MemoryError:
        pass
    finally:
        remove_mem_hooks()
    poller.run(time.monotonic() + 0.001)
assert told
for fd in (-1, -2**31, 2**31 - 1, 100_000):
    poller.unwatch(fd)
    poller.forget(fd, None)
    poller.forget(fd, function)
for fd in (-1, -2**31):
    try:
        poller.watch(fd, function, READABLE)
    except OSError:
        continue
    raise AssertionError("a descriptor that is none")
poller.close()
poller.run(time.monotonic() + 0.001)
""",
    "parser": """
from ingest.ext.encode import encode_p_data
from ingest.ext.pdu import (Command, DataSet, PDUParser)
from tests.faults.caller import data_pdus
message = encode_p_data(1, b"c" * 3000, 0)
data = data_pdus(1, b"d" * 70_000)
def run():
    parser = PDUParser(max_pdu_length=0)
    got = []
    for whole in (message, data):
        for start in range(0, len(whole), 5000):
            piece = whole[start : start + 5000]
            parser.get_buffer()[: len(piece)] = piece
            parser.buffer_updated(len(piece))
            while True:
                try:
                    event = parser.next_event()
                except MemoryError:
                    # What was lost may not be passed over: no event may follow.
                    for _ in range(3):
                        try:
                            assert parser.next_event() is None
                        except Exception as error:
                            assert type(error).__name__ in {"PeerError", "MemoryError"}
                    raise
                if event is None:
                    break
                got.append(event)
                if isinstance(event, Command):
                    assert event.data == b"c" * 3000
                    parser.expect_data_set(1, memory_limit=100_000)
    assert got[-1].data == b"d" * 70_000
each(run, lambda error: None)
""",
    "store": """
from tests.support.storing import site
from tests.unit.ext.test_segment_writer import instance
durable, small = sys.argv[2] == "durable", int(sys.argv[3])
with site(Path(sys.argv[1]), durable=durable, small=small) as own:
    sent = [0]
    def go(association, message):
        association.feed(message)
        deadline = time.monotonic() + 5
        while durable and association.scp.outstanding and time.monotonic() < deadline:
            select.select([own.spool.committer.wakeup], [], [], 0.05)
            for error in own.cstore_service.collect():
                raise error
    for number in range(160):
        message = instance(sent[0])
        with own.association() as association:
            set_nomemory(number, number + 1)
            try:
                go(association, message)
            except BaseException as error:
                assert not isinstance(error, (AssertionError, KeyboardInterrupt)), error
            finally:
                remove_mem_hooks()
            while durable and association.scp.outstanding and not association.scp.operations.receiving:
                own.cstore_service.collect()
        sent[0] += 1
    # And now everything works.
    with own.association() as association:
        for _ in range(3):
            go(association, instance(sent[0]))
            sent[0] += 1
        assert [answer.status for answer in association.responses()] == [0, 0, 0]
        assert association.scp.outstanding == 0
    from ingest.spool import inventory
    from ingest.spool.segment import Segment
    for place in inventory.list_waiting(own.spool.root, "L0"):
        with (own.spool.root / place.path).open("rb") as file:
            file.seek(place.offset)
            assert file.read(place.length or -1)[128:132] == b"DICM", place
""",
}

CASES["command"] = """
from ingest.ext.command import (decode_command, encode_command)
elements = {
    "AffectedSOPClassUID": "1.2.3", "CommandField": 1, "MessageID": 7, "ErrorComment": "a\\x01b",
    "OffendingElement": [0x00080016, 0x00080018], "MoveOriginatorApplicationEntityTitle": "AE",
}
whole = encode_command(elements)
def run():
    encoded = encode_command(elements)
    assert encoded == whole
    return decode_command(encoded)
each(run, lambda error: None)
assert decode_command(whole)["ErrorComment"] == "a?b"
"""


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("poller", []),
        ("parser", []),
        ("command", []),
        ("store", ["page-cache", "0"]),
        ("store", ["page-cache", "65536"]),
        ("store", ["durable", "0"]),
        ("store", ["durable", "65536"]),
    ],
)
def test_no_allocation_that_fails_leaves_a_trap(case: str, arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", HEAD + CASES[case], str(tmp_path), *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
