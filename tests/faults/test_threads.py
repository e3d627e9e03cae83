"""A thread of a running node that dies of something unforeseen: its process is replaced, and work goes on."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from ingest.threads import THREAD_EXIT
from tests.interop.files import write_made
from tests.support.nodes import Node, destination, eventually
from tests.support.ports import free_port

ROLES = {"handoff": "ingest-listen", "commit": "ingest-listen", "ledger-watch": "ingest-forward"}

BREAKS = """
import os, threading, time
def broken(original):
    def method(self, *arguments):
        if threading.current_thread().name == {thread!r}:
            while {waits} and not os.path.exists({flag!r}) and not os.path.exists({flag!r} + ".done"):
                time.sleep(0.02)
            if os.path.exists({flag!r}):
                os.rename({flag!r}, {flag!r} + ".done")
                raise SystemExit("unforeseen")
        return original(self, *arguments)
    return method
if {thread!r} == "commit":
    from ingest.spool import spool
    class Broken(spool.Committer):
        run = broken(spool.Committer.run)
    spool.Committer = Broken
elif {thread!r} == "handoff":
    from ingest.queue.publisher import Publisher
    Publisher._take_batch = broken(Publisher._take_batch)
else:
    from ingest.workers.backoff import Backoff
    Backoff.reset = broken(Backoff.reset)
from ingest.cli import main
main()
"""
"""Breaks one method, of which the body of the thread expects nothing, once, when the flag is there."""


@pytest.mark.parametrize("thread", ROLES)
def test_process_whose_thread_dies_is_replaced(
    make_node: Callable[..., Node], tmp_path: Path, thread: str
) -> None:
    role, flag = ROLES[thread], tmp_path / "flag"
    node = make_node(
        receive="[receive]\nprocesses = 1\nmin_free_bytes = 0",
        destinations=destination("pacs", free_port(), tls=False),
    )
    node.program = ("-c", BREAKS.format(thread=thread, flag=str(flag), waits=thread == "commit"))
    node.start()
    [before] = eventually(lambda: node.children(role), 10, role)
    flag.touch()
    eventually(lambda: node.events("child_died"), 20, "the process ends")
    assert node.events("child_died")[0]["code"] == THREAD_EXIT
    assert node.events("thread_died")[0]["thread"] == thread
    eventually(lambda: [one for one in node.children(role) if one.pid != before.pid], 10, "another one")
    files = write_made(tmp_path / "made", 3)
    remote = Remote("localhost", node.plain_port, "INGEST", "TESTS", None)
    until = time.monotonic() + 10
    while not (sent := send_files(remote, files)).stored_files and time.monotonic() < until:
        time.sleep(0.1)
    assert len(sent.stored_files) == 3
    eventually(lambda: len(node.stored()) == 3, 20, "all stored")
    assert node.stop() == 0


def test_duty_of_the_supervisor_that_fails_is_done_again(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.program = (
        "-c",
        "from ingest.tls import expiry\n"
        "def broken(self): raise RuntimeError('unforeseen')\n"
        "expiry.ExpiryWatch.log_due_warnings = broken\n"
        "from ingest.cli import main\nmain()",
    )
    node.start()
    node.kill_child("ingest-persist")
    eventually(lambda: node.events("child_died"), 10, "it is seen")
    eventually(lambda: node.children("ingest-persist"), 10, "it is replaced")
    assert len(node.events("watch_failed")) == 1
    assert node.stop() == 0
