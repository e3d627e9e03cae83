"""Groups of a real node while a member dies in the middle of a study: each row has an end."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from ingest.queue.client import find_socket_path
from ingest.requestor.send_files import send_files
from tests.support.instances import EXPLICIT, Made
from tests.support.nodes import Node, eventually
from tests.support.peers import CT, PynetdicomRemote
from tests.support.pki import Material
from tests.support.senders import remote_of

STUDIES, EACH = 3, 20
SLOWLY_SECONDS = 0.05


class Member(PynetdicomRemote):
    """A remote that is slow enough to die in the middle of a study."""

    def __init__(self, material: Material, port: int = 0) -> None:
        super().__init__([(CT, [EXPLICIT])], material.tls("remote"), self._wait, port=port)

    def _wait(self, _: object) -> int:
        time.sleep(SLOWLY_SECONDS)
        return 0

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def die(self) -> None:
        """End the listener and every association at once."""
        running = self._server.active_associations
        self._server.shutdown()
        for association in running:
            association.abort()

    @property
    def uids(self) -> list[str]:
        return [each.sop_instance for each in self.stored]


def write_files(folder: Path) -> list[Path]:
    paths = []
    folder.mkdir()
    for study in range(STUDIES):
        for number in range(EACH):
            sop = f"1.2.{study}.{number + 1}"
            made = Made(sop=sop, study=f"1.2.{study}", series=f"1.2.{study}.0", pixels=sop.encode())
            paths.append(folder / f"{sop}.dcm")
            paths[-1].write_bytes(made.file)
    return paths


def configure(make_node: Callable[..., Node], a: Member, b: Member, more: str) -> Node:
    destinations = "".join(
        f'[[destinations]]\nname = "{name}"\nae_title = "REMOTE"\nhost = "localhost"\nport = {remote.port}\n'
        "retry_first_seconds = 0.2\nretry_max_seconds = 1\nconnect_seconds = 2\nresponse_seconds = 5\n"
        for name, remote in (("a", a), ("b", b))
    )
    return make_node(
        workers="[workers]\npersist = 1\nforward = 3",
        destinations=f'{destinations}[[groups]]\nname = "archive"\nmembers = ["a", "b"]\n{more}',
        routes='[[routes]]\nto = ["archive"]',
    ).start()


def count_delivered(node: Node) -> dict[tuple[str, str], int]:
    """Number of delivered instances by study and member."""
    rows = node.query(
        "SELECT study_uid, member, count(*) FROM deliveries JOIN instances ON instances.id = instance_id "
        "WHERE deliveries.state = 'delivered' GROUP BY 1, 2"
    )
    return {(study, member): count for study, member, count in rows}


def read_members(node: Node) -> dict[str, set[str]]:
    """The members that have something of each study."""
    found: dict[str, set[str]] = {}
    for study, member in count_delivered(node):
        found.setdefault(study, set()).add(member)
    return found


def are_where_the_ledger_says(node: Node, a: Member, b: Member) -> None:
    rows = node.query(
        "SELECT sop_instance_uid, member FROM deliveries JOIN instances ON instances.id = instance_id"
    )
    assert len(rows) == STUDIES * EACH
    remotes = {"a": set(a.uids), "b": set(b.uids)}
    assert [row for row in rows if row[0] not in remotes[row[1]]] == []


def disturb(node: Node) -> None:
    """Empty Redis, and kill a forward worker."""
    import redis

    with contextlib.closing(redis.Redis(unix_socket_path=str(find_socket_path(node.data)))) as client:
        client.flushall()
    node.kill_child("ingest-forward")


@pytest.mark.slow
@pytest.mark.parametrize("moves", [False, True], ids=["wait", "move"])
def test_member_dies_in_the_middle_of_a_study(
    moves: bool, make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    paths = write_files(tmp_path / "files")
    everything = STUDIES * EACH
    with contextlib.ExitStack() as stack:
        a, b = Member(material).__enter__(), stack.enter_context(Member(material))
        node = configure(make_node, a, b, f'study_in_progress = "{"move" if moves else "wait"}"')
        sender = threading.Thread(target=send_files, args=(remote_of(node), paths, 2))
        sender.start()
        # Results are written twice a second, so half of the first study is left then.
        eventually(lambda: read_members(node), 20, "the first member has a part of a study")
        a.die()
        disturb(node)
        sender.join(60)
        if moves:
            eventually(lambda: node.deliveries() == {"delivered": everything}, 60, "all are delivered")
            # The sender has two associations, so a second study may have begun as well.
            members = sorted(map(sorted, read_members(node).values()))
            assert ["a", "b"] in members
            assert ["b"] in members
            are_where_the_ledger_says(node, a, b)
            return

        def are_elsewhere() -> bool:
            done = count_delivered(node)
            begun = {study for study, member in done if member == "a"}
            others = {f"1.2.{number}" for number in range(STUDIES)} - begun
            return bool(begun and others) and all(done.get((study, "b")) == EACH for study in others)

        eventually(are_elsewhere, 40, "the other studies go elsewhere")
        assert node.query("SELECT count(*) FROM deliveries WHERE state = 'dead'") == [(0,)]
        begun = [count for (_, member), count in count_delivered(node).items() if member == "a"]
        assert 0 < sum(begun) < EACH * len(begun)
        again = stack.enter_context(Member(material, a.port))
        again.stored.extend(a.stored)
        eventually(lambda: node.deliveries() == {"delivered": everything}, 60, "all are delivered")
        assert all(len(found) == 1 for found in read_members(node).values())
        are_where_the_ledger_says(node, again, b)
        assert node.stop() == 0


@pytest.mark.slow
def test_studies_in_turn_reach_both_members_while_workers_are_killed(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    paths = write_files(tmp_path / "files")
    with Member(material) as a, Member(material) as b:
        node = configure(make_node, a, b, 'policy = "round-robin"')
        assert not send_files(remote_of(node), paths, 2).failed_files
        disturb(node)
        everything = {"delivered": STUDIES * EACH}
        eventually(lambda: node.deliveries() == everything, 60, "all are delivered")
        members = read_members(node)
        # Which study a worker sees first is a matter of chance.
        assert sorted(map(sorted, members.values())) == [["a"], ["a"], ["b"]]
        are_where_the_ledger_says(node, a, b)
