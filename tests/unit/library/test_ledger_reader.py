"""`ingest.Ledger` on both databases: it lists, pages and traces, and writes nothing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import ingest
from ingest.ledger import InstanceState
from ingest.ledger import Ledger as LedgerDatabase
from ingest.library import ledger as reader
from tests.support.ledgers import row
from tests.support.migrating import downgrade

TEN = datetime(2026, 11, 30, 10, tzinfo=UTC)
TEN_MS = round(TEN.timestamp() * 1000)


@pytest.fixture
def config(tmp_path: Path, url: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(
        f'[node]\ndata_dir = "{tmp_path}/data"\n[ledger]\nurl = "{url}"\n'
        '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "localhost"\ntls = false\n'
    )
    written = LedgerDatabase(url)
    written.migrate()
    rows = [
        row(
            number,
            study_uid=str(number % 2),
            received_at=TEN_MS + number * 1000,
            stored_at=TEN_MS + number * 1000 + 5,
            calling_ae=f"CT{number % 2}",
        )
        for number in range(1, 8)
    ]
    rows.append(
        row(8, state=InstanceState.QUARANTINED, store_key="q.dcm", received_at=TEN_MS, destinations=())
    )
    written.instances.record(rows)
    written.close()
    return path


def test_instances_come_page_by_page_with_paths_times_and_deliveries(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PAGE", 3)
    with ingest.Ledger(config) as ledger:
        found = list(ledger.instances())
        assert [one.sop_instance_uid for one in found] == [f"1.2.{number}" for number in range(8, 0, -1)]
        quarantined, newest = found[:2]
        assert quarantined.path == tmp_path / "data" / "quarantine" / "q.dcm"
        assert newest.path == tmp_path / "data" / "store" / "1/1/1.2.7.dcm"
        assert newest.received_at == TEN + timedelta(seconds=7)
        assert newest.deliveries == {"pacs": ingest.DeliveryState.WAITING}
        assert len(list(ledger.instances(study_uid="0", calling_ae="CT0"))) == 3
        late = ledger.instances(
            since=TEN + timedelta(seconds=3), until=(TEN + timedelta(seconds=5)).replace(tzinfo=None)
        )
        assert [one.sop_instance_uid for one in late] == ["1.2.4", "1.2.3"]
        assert [one.id for one in ledger.instances(states=[InstanceState.QUARANTINED])] == [quarantined.id]


def test_studies_and_deliveries_come_page_by_page(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PAGE", 2)
    with ingest.Ledger(config) as ledger:
        studies = {study.study_uid: study for study in ledger.studies()}
        assert studies["0"].instances == 3
        assert studies["0"].size_bytes == 3000
        assert studies["0"].deliveries == {ingest.DeliveryState.WAITING: 3}
        assert studies["0"].last_at == TEN + timedelta(seconds=6)
        deliveries = list(ledger.deliveries(destination="pacs", states=[ingest.DeliveryState.WAITING]))
        assert len(deliveries) == 7
        assert deliveries[0].last_error == ""
        assert deliveries[0].attempts == 0
        assert list(ledger.deliveries(states=[ingest.DeliveryState.DEAD])) == []


def test_trace_tells_what_happened(config: Path) -> None:
    with ingest.Ledger(config) as ledger:
        told = ledger.trace("1.2.3")
        assert (told.kind, told.study_uids) == ("instance", ("1",))
        assert [line.kind for line in told.lines][:2] == ["received", "stored"]
        assert told.next_steps
        with pytest.raises(ingest.UnknownObjectError):
            ledger.trace("1.2.99")


def test_reader_cannot_write(config: Path) -> None:
    with ingest.Ledger(config) as ledger, pytest.raises(ingest.LedgerError, match=r"read-?only"):
        ledger._database.instances.record([row(9)])


def test_missing_or_older_ledger_is_an_error_and_stays_as_it_is(
    config: Path, tmp_path: Path, url: str
) -> None:
    older = LedgerDatabase(url)
    downgrade(older, "0017")
    with pytest.raises(ingest.LedgerError, match="0017"):
        ingest.Ledger(config)
    assert older.read_schema_version() == "0017"
    older.close()
    with pytest.raises(ingest.LedgerError, match="none"):
        ingest.Ledger(ingest.Config().model_copy(update={"node": _node_at(tmp_path / "new")}))
    assert not (tmp_path / "new").exists()


def _node_at(folder: Path) -> object:
    return ingest.Config().node.model_copy(update={"data_dir": folder})
