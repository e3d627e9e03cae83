"""Storage commitment (PS3.4 J) asked by pynetdicom over TLS: the request, what counts, and the report."""

import contextlib
import sqlite3
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom import sop_class as sop_classes

from tests.support.instances import CT, EXPLICIT, IMPLICIT, Made
from tests.support.nodes import Node, destination, eventually
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.tls_peers import ssl_client_context, ssl_server_context

StorageCommitmentPushModel: Any = sop_classes.StorageCommitmentPushModel  # type: ignore[attr-defined]
StorageCommitmentPushModelInstance = "1.2.840.10008.1.20.1.1"
SUCCESS, INVALID_ARGUMENT, NO_SUCH_INSTANCE, NO_SUCH_ACTION = 0x0000, 0x0115, 0x0112, 0x0123


@dataclass
class Modality:
    """A scanner that stores, asks for commitment, and takes the report at its own port."""

    material: Material
    node: Node
    port: int = field(default_factory=free_port)
    reports: list[tuple[int, str, Dataset]] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    store_status: int = SUCCESS
    report_statuses: list[int] = field(default_factory=list)
    _server: Any = None

    def listen(self) -> None:
        ae = AE("CT1")
        ae.add_supported_context(CT, [EXPLICIT, IMPLICIT])
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        self._server = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            ssl_context=ssl_server_context(self.material.tls("peer")),
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._report), (evt.EVT_C_STORE, self._store)],
        )

    def end(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def send(self, folder: Path, instances: Sequence[Made], ask: Dataset | None = None) -> int | None:
        """Send instances, and the request on the same association. Returns the status of the N-ACTION."""
        ae = AE("CT1")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
        ae.add_requested_context(CT, EXPLICIT)
        if ask is not None:
            ae.add_requested_context(StorageCommitmentPushModel)
        context: ssl.SSLContext = ssl_client_context(self.material.tls("peer"))
        association = ae.associate(
            "127.0.0.1", self.node.tls_port, ae_title="INGEST", tls_args=(context, "localhost")
        )
        assert association.is_established
        folder.mkdir(exist_ok=True)
        for instance in instances:
            path = folder / f"{instance.sop}.dcm"
            path.write_bytes(instance.file)
            assert association.send_c_store(path).Status == SUCCESS
        status = None if ask is None else self.ask(association, ask)
        association.release()
        return status

    @staticmethod
    def ask(association: Any, request: Dataset, action: int = 1, instance: str = "") -> int:
        answer, _ = association.send_n_action(
            request, action, StorageCommitmentPushModel, instance or StorageCommitmentPushModelInstance
        )
        return int(answer.Status)

    def _report(self, event: Any) -> tuple[int, None]:
        self.reports.append((event.event_type, str(event.assoc.requestor.ae_title), event.event_information))
        return self.report_statuses.pop() if self.report_statuses else SUCCESS, None

    def _store(self, event: Any) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return self.store_status


def request_for(uids: Sequence[str], sop_class: str = CT) -> Dataset:
    request = Dataset()
    request.TransactionUID = generate_uid()
    request.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        request.ReferencedSOPSequence.append(item)
    return request


def uids_of(sequence: Any) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in sequence or ()]


def configure(node: Node, modality: Modality, *, wait_seconds: float = 1.0, committed: str = "") -> None:
    node.configure(
        peers='[[peers]]\nae_title = "CT1"\ndestination = "ct1"',
        destinations=destination("ct1", modality.port, retry_first_seconds=0.2, retry_max_seconds=1)
        + 'return = true\nname = "back"\n'
        + (f'committed = "{committed}"\n' if committed else 'when = { calling_ae = "NOBODY" }\n'),
        commitment=f"[commitment]\nwait_seconds = {wait_seconds}",
    )


@pytest.fixture
def modality(make_node: Callable[..., Node], material: Material) -> Iterator[Modality]:
    one = Modality(material, make_node())
    yield one
    one.end()


def test_what_is_stored_is_committed_and_what_never_came_is_not(modality: Modality, tmp_path: Path) -> None:
    modality.listen()
    configure(modality.node, modality)
    modality.node.start()
    uids = ["1.2.3.1", "1.2.3.2"]
    request = request_for([*uids, "1.2.3.9"])
    assert modality.send(tmp_path / "files", [Made(sop=uid) for uid in uids], request) == SUCCESS
    [(kind, caller, report)] = eventually(lambda: modality.reports, 30, "the report")
    assert (kind, caller, report.TransactionUID) == (2, "INGEST", request.TransactionUID)
    assert uids_of(report.ReferencedSOPSequence) == uids
    [failed] = report.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == ("1.2.3.9", NO_SUCH_INSTANCE)
    assert modality.node.stored().keys() == set(uids), "a request is no instance"
    eventually(lambda: modality.node.query("SELECT state FROM commitments") == [("reported",)], 10, "its end")
    eventually(lambda: not modality.node.spooled(), 10, "the request has left the spool")


def test_instance_on_its_way_is_waited_for_and_a_killed_node_forgets_no_request(
    modality: Modality, tmp_path: Path
) -> None:
    """The request comes first, its modality is away, and the node is killed twice."""
    configure(modality.node, modality, wait_seconds=600)
    modality.node.start()
    request = request_for(["1.2.3.1"])
    assert modality.send(tmp_path / "files", [], request) == SUCCESS
    modality.node.kill()
    modality.node.start()
    modality.send(tmp_path / "files", [Made(sop="1.2.3.1")])
    eventually(lambda: modality.node.query("SELECT state FROM commitments") == [("due",)], 30, "judged")
    modality.node.kill()
    modality.listen()
    modality.node.start()
    [(kind, _, report)] = eventually(lambda: modality.reports, 40, "the report")
    assert (kind, uids_of(report.ReferencedSOPSequence)) == (1, ["1.2.3.1"])
    assert "FailedSOPSequence" not in report


def test_committed_can_mean_delivered(modality: Modality, tmp_path: Path) -> None:
    modality.store_status = 0xA700
    modality.listen()
    configure(modality.node, modality, committed="delivered:ct1")
    modality.node.start()
    assert modality.send(tmp_path / "f", [Made(sop="1.2.3.1")], request_for(["1.2.3.1"])) == SUCCESS
    eventually(lambda: len(modality.stored) > 1, 30, "attempts to deliver")
    assert modality.reports == [], "stored, but not delivered"
    modality.store_status = SUCCESS
    [(kind, _, report)] = eventually(lambda: modality.reports, 40, "the report")
    assert (kind, uids_of(report.ReferencedSOPSequence)) == (1, ["1.2.3.1"])


def test_ten_thousand_references_in_one_request(modality: Modality, tmp_path: Path) -> None:
    modality.listen()
    configure(modality.node, modality)
    modality.node.start()
    uids = [f"1.2.826.0.1.3680043.10.1338.77.{number}" for number in range(10_000)]
    assert modality.send(tmp_path / "f", [Made(sop=uids[0])], request_for(uids)) == SUCCESS
    [(kind, _, report)] = eventually(lambda: modality.reports, 60, "the report")
    assert (kind, uids_of(report.ReferencedSOPSequence)) == (2, uids[:1])
    assert uids_of(report.FailedSOPSequence) == uids[1:]


def test_bad_requests_are_refused_in_the_words_of_the_standard(modality: Modality) -> None:
    configure(modality.node, modality)
    modality.node.start()
    ae = AE("CT1")
    ae.add_requested_context(StorageCommitmentPushModel)
    tls = ssl_client_context(modality.material.tls("peer"))
    association = ae.associate(
        "127.0.0.1", modality.node.tls_port, ae_title="INGEST", tls_args=(tls, "localhost")
    )
    sound, nameless = request_for(["1.2.3.1"]), request_for(["1.2.3.1"])
    del nameless.TransactionUID
    assert modality.ask(association, sound, action=2) == NO_SUCH_ACTION
    assert modality.ask(association, sound, instance="1.2.3.4") == NO_SUCH_INSTANCE
    assert modality.ask(association, nameless) == INVALID_ARGUMENT
    # Items are read from the ledger's side, so an empty sequence is seen only there.
    assert modality.ask(association, request_for([])) == SUCCESS
    assert modality.ask(association, sound) == SUCCESS, "the association lives"
    association.release()
    states = [("failed", "the request references no instance"), ("waiting", "")]
    query = "SELECT state, last_error FROM commitments ORDER BY id"
    eventually(lambda: modality.node.query(query) == states, 20, "two requests")


def test_modality_that_hangs_up_and_refuses_its_report_gets_it_until_it_takes_it(
    modality: Modality, tmp_path: Path
) -> None:
    """It names an instance twice, aborts right after its request, is away, and then refuses twice."""
    configure(modality.node, modality)
    modality.node.start()
    modality.send(tmp_path / "files", [Made(sop="1.2.3.1")])
    ae = AE("CT1")
    ae.add_requested_context(StorageCommitmentPushModel)
    tls = ssl_client_context(modality.material.tls("peer"))
    for _ in range(3):
        association = ae.associate(
            "127.0.0.1", modality.node.tls_port, ae_title="INGEST", tls_args=(tls, "localhost")
        )
        assert modality.ask(association, request_for(["1.2.3.1", "1.2.3.1"])) == SUCCESS
        association.abort()
    away = eventually(lambda: modality.node.events("commitment_not_reported"), 30, "nobody is there")
    assert away[0]["destination"] == "ct1"
    modality.report_statuses = [0x0110, 0x0110]
    modality.listen()
    reports = eventually(lambda: len(modality.reports) >= 5 and modality.reports, 60, "all reports")
    assert {(kind, *uids_of(report.ReferencedSOPSequence)) for kind, _, report in reports} == {(1, "1.2.3.1")}
    assert len({report.TransactionUID for _, _, report in reports}) == 3
    ended = [("reported",)] * 3
    eventually(lambda: modality.node.query("SELECT state FROM commitments") == ended, 20, "their end")


@pytest.mark.parametrize(
    "peers", ["", '[[peers]]\nae_title = "CT1"'], ids=["anybody", "a peer without a destination"]
)
def test_caller_without_a_destination_cannot_ask(modality: Modality, peers: str) -> None:
    modality.node.start(peers=peers)
    ae = AE("CT1")
    ae.add_requested_context(StorageCommitmentPushModel)
    ae.add_requested_context(CT)
    tls = ssl_client_context(modality.material.tls("peer"))
    association = ae.associate(
        "127.0.0.1", modality.node.tls_port, ae_title="INGEST", tls_args=(tls, "localhost")
    )
    assert [context.abstract_syntax for context in association.accepted_contexts] == [CT]
    association.release()


@dataclass
class Archive:
    """A destination that keeps what it gets, and reports its commitment over a new association."""

    material: Material
    node: Node
    port: int = field(default_factory=free_port)
    asked: list[Dataset] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    refuse: int = SUCCESS
    _server: Any = None

    def __enter__(self) -> "Archive":
        ae = AE("PACS")
        ae.add_supported_context(CT, [EXPLICIT, IMPLICIT])
        ae.add_supported_context(StorageCommitmentPushModel)
        self._server = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            ssl_context=ssl_server_context(self.material.tls("remote")),
            evt_handlers=[(evt.EVT_N_ACTION, self._take_request), (evt.EVT_C_STORE, self._store)],
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def report(self, request: Dataset, failed: Sequence[str] = ()) -> int:
        """Report over a new association; returns the status of the node."""
        ae = AE("PACS")
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        tls = ssl_client_context(self.material.tls("remote"))
        association = ae.associate(
            "127.0.0.1", self.node.tls_port, ae_title="INGEST", tls_args=(tls, "localhost"), ext_neg=[role]
        )
        assert association.is_established
        answer = Dataset()
        answer.TransactionUID = request.TransactionUID
        good, bad = [], []
        for item in request.ReferencedSOPSequence:
            (bad if item.ReferencedSOPInstanceUID in failed else good).append(item)
        for item in bad:
            item.FailureReason = NO_SUCH_INSTANCE
        answer.ReferencedSOPSequence, answer.FailedSOPSequence = good, bad
        status, _ = association.send_n_event_report(
            answer, 2 if bad else 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        association.release()
        return int(status.Status)

    def _take_request(self, event: Any) -> tuple[int, None]:
        if self.refuse == SUCCESS:
            self.asked.append(event.action_information)
        return self.refuse, None

    def _store(self, event: Any) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return SUCCESS


def commitments(node: Node) -> list[tuple[Any, ...]]:
    return node.query(
        "SELECT i.sop_instance_uid, d.state, d.commitment FROM deliveries d JOIN instances i"
        " ON i.id = d.instance_id ORDER BY 1"
    )


def trace(node: Node, uid: str) -> str:
    """The output of `ingest trace`."""
    process = node.launch("trace", uid)
    return process.communicate(timeout=30)[0]


def test_destination_is_asked_and_what_it_has_lost_is_sent_again(
    modality: Modality, material: Material, tmp_path: Path
) -> None:
    """The request is refused first, the node is killed between request and report, and one is missing."""
    with Archive(material, modality.node) as archive:
        archive.refuse = 0x0213
        modality.node.configure(
            peers='[[peers]]\nae_title = "CT1"\n[[peers]]\nae_title = "PACS"\ndestination = "pacs"',
            destinations=destination("pacs", archive.port, commitment=True, linger_seconds=0.1),
        )
        modality.node.start()
        uids = ["1.2.3.1", "1.2.3.2"]
        modality.send(tmp_path / "files", [Made(sop=uid) for uid in uids])
        eventually(lambda: modality.node.events("commitment_not_asked"), 30, "a refusal")
        assert {row[1:] for row in commitments(modality.node)} == {("delivered", "wanted")}
        assert "will be asked to commit" in trace(modality.node, uids[0])
        archive.refuse = SUCCESS
        # What a person could not do: the pause of a minute is over.
        with contextlib.closing(sqlite3.connect(modality.node.data / "ledger.db", timeout=20)) as ledger:
            ledger.execute("UPDATE commitment_requests SET next_at = 0")
            ledger.commit()
        [request] = eventually(lambda: archive.asked, 30, "the request")
        assert sorted(uids_of(request.ReferencedSOPSequence)) == uids
        eventually(lambda: {row[2] for row in commitments(modality.node)} == {"asked"}, 10, "asked")
        assert "was asked to commit" in trace(modality.node, uids[0])
        modality.node.kill()
        modality.node.start()
        assert archive.report(request, failed=["1.2.3.2"]) == SUCCESS
        [_, again] = eventually(lambda: len(archive.asked) == 2 and archive.asked, 40, "the second request")
        assert uids_of(again.ReferencedSOPSequence) == ["1.2.3.2"]
        assert sorted(archive.stored) == ["1.2.3.1", "1.2.3.2", "1.2.3.2"]
        assert archive.report(again) == SUCCESS
        done = [(uid, "delivered", "committed") for uid in uids]
        eventually(lambda: commitments(modality.node) == done, 20, "all committed")
        # A report that comes twice, and one of nobody's request, change nothing.
        again.TransactionUID = generate_uid()
        assert archive.report(again, failed=["1.2.3.2"]) == SUCCESS
        eventually(lambda: modality.node.events("commitment_report_unknown"), 20, "the stray report")
        assert commitments(modality.node) == done


def test_peer_that_is_no_destination_cannot_report(modality: Modality) -> None:
    modality.node.start(peers='[[peers]]\nae_title = "PACS"')
    ae = AE("PACS")
    ae.add_requested_context(StorageCommitmentPushModel)
    association = ae.associate(
        "127.0.0.1",
        modality.node.tls_port,
        ae_title="INGEST",
        tls_args=(ssl_client_context(modality.material.tls("remote")), "localhost"),
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
    )
    assert association.accepted_contexts == []
    association.abort()
