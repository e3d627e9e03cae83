"""Ids of associations: in the File Meta of their instances, and on the scoreboard while they are open."""

from pathlib import Path

from ingest.acceptor.association_id import find_id_range, make_association_id
from ingest.acceptor.scoreboard import ENTRIES, Scoreboard
from ingest.clock import monotonic_ms
from ingest.dicom.part10 import FileMeta, encode_file_meta, read_file_meta
from tests.support.instances import CT, EXPLICIT


def test_ids_belong_to_their_data_folder_and_fit_into_the_ledger(tmp_path: Path) -> None:
    first, other = (find_id_range(tmp_path / name) for name in ("a", "b"))
    assert first == find_id_range(tmp_path / "a")
    assert first != other
    for low, high in (first, other):
        assert 0 < low < high < 1 << 63
        assert all(low <= make_association_id((low, high)) <= high for _ in range(100))
    assert len({make_association_id(first) for _ in range(1000)}) == 1000


def test_file_meta_keeps_id_beside_certificate_and_priority(tmp_path: Path) -> None:
    for number, certificate in enumerate(((), ("ab" * 32, "CN=CT1", "DNS:ct1"))):
        for priority in (0, 1, 2):
            for association in (0, 1, (1 << 63) - 1):
                meta = FileMeta(CT, "1.2.3", EXPLICIT, certificate=certificate, priority=priority)
                named = FileMeta(
                    CT, "1.2.3", EXPLICIT, certificate=certificate, priority=priority, association=association
                )
                path = tmp_path / f"{number}-{priority}-{association}"
                path.write_bytes(encode_file_meta(named))
                with path.open("rb") as file:
                    assert read_file_meta(file.fileno()) == (named, path.stat().st_size)
                # Without an id nothing is written.
                assert (encode_file_meta(named) == encode_file_meta(meta)) == (not association)


def test_scoreboard_lists_open_associations_and_forgets_those_of_a_dead_listener(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "scoreboard")
    reader = Scoreboard.open_reader(tmp_path / "scoreboard")
    assert reader is not None
    entries = [board.claim_association(row, 5) for row in (0, 0, 1, 1)]
    for number, entry in enumerate(entries):
        assert entry is not None
        if number != 3:
            board.name_association(entry, 100 + number)
    assert entries[0] is not None
    assert entries[3] is not None
    assert set(reader.list_open_associations()) == {100, 101, 102}
    assert board.find_association_id(entries[0]) == 100
    board.note_progress({entries[0]: monotonic_ms() - 5000})
    ages = reader.list_open_associations()
    assert 5000 <= ages[100] < 10_000
    assert ages[101] < 5000
    board.release_association(entries[0])
    assert set(reader.list_open_associations()) == {101, 102}
    board.clear_row(1)
    assert set(reader.list_open_associations()) == {101}
    # The next association of an entry has no id until it is given one.
    again = board.claim_association(2, 5)
    assert again == entries[0]
    assert set(reader.list_open_associations()) == {101}
    assert entries[3] < ENTRIES
