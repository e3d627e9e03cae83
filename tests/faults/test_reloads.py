"""Reloads: new listeners accept before the old ones go, and old ones do not pile up."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ingest.acceptor.scoreboard import ROWS
from tests.faults.caller import Caller
from tests.faults.watch import listeners
from tests.support.nodes import Node, eventually

RECEIVE = "[receive]\nprocesses = {}\nmin_free_bytes = 0"


@pytest.fixture
def callers() -> Iterator[list[Caller]]:
    """Associations that a test leaves open; closed after it."""
    opened: list[Caller] = []
    yield opened
    for caller in opened:
        caller.sock.close()


def accepts(node: Node) -> None:
    with Caller.plain(node) as caller:
        caller.associate()
        assert caller.echo() == 0
        caller.release()


def reload(node: Node) -> tuple[int, str]:
    """`ingest reload`: its exit code and what it says."""
    process = node.launch("reload")
    said, _ = process.communicate(timeout=100)
    return process.returncode, said


def is_alive(caller: Caller) -> bool:
    try:
        return caller.echo() == 0
    except (OSError, AssertionError):
        return False


def test_old_listeners_do_not_pile_up_and_new_callers_are_always_accepted(
    make_node: Callable[..., Node],
    callers: list[Caller],
) -> None:
    node = make_node(receive=RECEIVE.format(2)).start()
    for generation in range(2, 7):
        for _ in range(4):
            callers.append(Caller.plain(node))
            callers[-1].associate()
        code, said = reload(node)
        assert code == 0, said
        assert f"generation {generation}" in said
        accepts(node)
        assert len(listeners(node)) <= 2 * 4, "of the configuration in force, and of two before it"
    eventually(lambda: len(listeners(node)) <= 2 * 3, 10, "two earlier configurations at most")
    assert all(is_alive(caller) for caller in callers[-8:]), "the newest ones go on"
    assert not any(is_alive(caller) for caller in callers[:8]), "the oldest were aborted"
    assert len(node.events("listener_waits_for_a_row")) == 0


def test_associations_from_before_a_reload_are_aborted_after_reload_drain_seconds(
    make_node: Callable[..., Node],
) -> None:
    # The drain of the configuration in force counts. The first one outlasts any load of the machine.
    node = make_node(receive=RECEIVE.format(1), node="[node]\nreload_drain_seconds = 600").start()
    with Caller.plain(node) as caller:
        caller.associate()
        assert reload(node)[0] == 0
        assert is_alive(caller)
        node.configure(node="[node]\nreload_drain_seconds = 1")
        assert reload(node)[0] == 0
        assert caller.read_pdu()[:1] == b"\x07", "A-ABORT"
    eventually(lambda: len(listeners(node)) == 1, 10, "the old listener has ended")


def test_a_reload_whose_listeners_do_not_come_up_is_refused_and_changes_nothing(
    make_node: Callable[..., Node],
) -> None:
    node = make_node(receive=RECEIVE.format(2)).start()
    before = listeners(node)
    for number in range(16):
        # A file stands where the next listener would make its slot.
        if not (slot := node.spool / f"L{number}").exists():
            slot.write_text("in the way")
    assert reload(node)[0] == 2
    assert "a listener of the new configuration ended with code 3" in str(node.events("reload_refused")[-1])
    accepts(node)
    assert listeners(node) >= before
    for slot in node.spool.glob("L*"):
        if slot.is_file():
            slot.unlink()
    assert reload(node)[0] == 0
    eventually(lambda: not listeners(node) & before, 10, "the old listeners have ended")
    accepts(node)


@pytest.mark.long
def test_as_many_listeners_as_there_may_be_can_be_reloaded_again_and_again(
    make_node: Callable[..., Node],
    callers: list[Caller],
) -> None:
    most = ROWS // 2
    node = make_node(receive=RECEIVE.format(most)).start()
    for _ in range(2):
        callers.append(Caller.plain(node))
        callers[-1].associate()
        code, said = reload(node)
        assert code == 0, said
        accepts(node)
    assert len(node.events("listener_waits_for_a_row")) <= 1, "it is not said at each look"


def test_a_worker_holds_no_listening_socket_also_after_a_reload(make_node: Callable[..., Node]) -> None:
    node = make_node(receive=RECEIVE.format(1), retention="[retention]\nkeep_days = 1").start()
    assert reload(node)[0] == 0
    eventually(lambda: len(listeners(node)) == 1, 10, "the old listener has ended")

    def held() -> dict[str, list[object]]:
        return {
            f"{child.name()} {child.pid}": [
                one for one in child.net_connections("inet") if one.status == psutil.CONN_LISTEN
            ]
            for child in node.children()
            if child.name().startswith("ingest-") and child.name() != "ingest-listen"
        }

    workers = eventually(lambda: held() or None, 10, "workers")
    assert {name.split()[0] for name in workers} >= {"ingest-persist", "ingest-retain"}
    assert not any(workers.values()), workers


def test_a_second_reload_during_one_is_done_after_it(make_node: Callable[..., Node]) -> None:
    node = make_node(receive=RECEIVE.format(2)).start()
    assert node.process is not None
    for _ in range(3):
        node.process.send_signal(signal.SIGHUP)
        eventually(lambda: node.events("signal"), 5, "a signal")
    eventually(
        lambda: len(listeners(node)) == 2 and node.events("reloaded"), 20, "one set of listeners is left"
    )
    accepts(node)


def test_no_key_of_a_listener_is_in_the_memory_of_a_persist_worker(make_node: Callable[..., Node]) -> None:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    node = make_node(receive=RECEIVE.format(1)).start()
    key = load_pem_private_key(node.material.key("node").read_bytes(), None)
    prime = key.private_numbers().p if isinstance(key, RSAPrivateKey) else key.private_numbers().private_value
    needle = prime.to_bytes((prime.bit_length() + 7) // 8, "little")
    found = {child.name(): memory_holds(child.pid, needle) for child in node.children()}
    assert found["ingest-listen"], "the search finds a key where there is one"
    assert not found["ingest-persist"]


def test_children_share_the_memory_that_they_were_forked_with(make_node: Callable[..., Node]) -> None:
    node = make_node(receive=RECEIVE.format(4)).start()
    assert reload(node)[0] == 0
    eventually(lambda: len(listeners(node)) == 4, 10, "the old listeners have ended")

    def own() -> dict[str, int]:
        """Bytes of memory that each listener shares with nobody."""
        found = {}
        for pid in listeners(node):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found[str(pid)] = sum(
                int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty")
            )
        return found

    assert max(own().values()) < 16 << 20, own()


def memory_holds(pid: int, needle: bytes) -> bool:
    """Whether the writable memory of a process holds these bytes."""
    with Path(f"/proc/{pid}/maps").open() as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if "w" not in rights or "[v" in line:
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(start)
                if needle in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False
