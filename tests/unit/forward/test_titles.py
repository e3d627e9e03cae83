"""AE titles that are passed through from the senders to a destination."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import AE, evt

from ingest.clock import unix_ms
from ingest.config.model import TLS, Destination
from ingest.errors import AssociationError, Cause
from ingest.ledger import CircuitState, Delivery, DeliveryResult, DeliveryState, Ledger
from ingest.ledger.transfer_notes import SENT
from ingest.requestor.transport import Remote
from ingest.workers.forward.retry_policy import (
    Dead,
    DeathCause,
    Retry,
    RetryPolicy,
    TitlesRefused,
    decide_delivery,
)
from ingest.workers.forward.titles import TitleRule, Titles, group_by_titles
from tests.support.drains import drain_once, wait_until_due
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT, Made
from tests.support.peers import AE_TITLE, CT
from tests.support.tls_peers import ssl_server_context

OWN = Titles("INGEST", "PACS")
BOTH = TitleRule(OWN, frozenset({"calling_ae", "called_ae"}))


def row(number: int = 1, calling_ae: str = "CT1", called_ae: str = "GATE", series: str = "1.1") -> Delivery:
    return Delivery(
        id=number,
        instance_id=number,
        destination="pacs",
        attempts=1,
        lease_until=0,
        created_at=0,
        breaks=0,
        suspect_since=0,
        store_key="",
        size=0,
        data_set_offset=0,
        series_uid=series,
        sop_class_uid=CT,
        sop_instance_uid=f"1.{number}",
        transfer_syntax_uid=EXPLICIT,
        stored_at=0,
        calling_ae=calling_ae,
        called_ae=called_ae,
    )


@pytest.mark.parametrize(
    ("passed", "calling_ae", "called_ae", "expected"),
    [
        (set(), "CT1", "GATE", OWN),
        ({"calling_ae"}, "CT1", "GATE", Titles("CT1", "PACS")),
        ({"called_ae"}, "CT1", "GATE", Titles("INGEST", "GATE")),
        ({"calling_ae", "called_ae"}, "CT1", "GATE", Titles("CT1", "GATE")),
        ({"calling_ae", "called_ae"}, "", "  ", OWN),
        ({"calling_ae", "called_ae"}, "A TITLE OF 17 CHR", "back\\slash", OWN),
        ({"calling_ae"}, "Zürich", "GATE", OWN),
    ],
)
def test_a_title_is_ours_unless_it_is_passed_through(
    passed: set[str], calling_ae: str, called_ae: str, expected: Titles
) -> None:
    rule = TitleRule(OWN, frozenset(passed))
    assert rule.choose_titles(row(calling_ae=calling_ae, called_ae=called_ae)) == expected


def test_the_remote_has_the_configured_titles() -> None:
    destination = Destination(name="pacs", ae_title="PACS", host="pacs", pass_through=("calling_ae",))
    rule = TitleRule.from_destination(destination, Remote("pacs", 104, "PACS", "INGEST"))
    assert rule == TitleRule(OWN, frozenset({"calling_ae"}))


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("123")), max_size=40))
def test_a_batch_is_grouped_by_titles_and_each_series_keeps_its_order(made: list[tuple[str, str]]) -> None:
    rows = [row(number, calling_ae=title, series=series) for number, (title, series) in enumerate(made)]
    grouped = group_by_titles(rows, BOTH)
    assert sorted(grouped, key=lambda each: each.id) == rows
    for series in "123":
        ids = [each.id for each in grouped if each.series_uid == series]
        assert ids == sorted(ids)
    if len({(each.calling_ae, each.series_uid) for each in rows}) == len({each.series_uid for each in rows}):
        # No series comes from two senders: each sender needs one association.
        changes = sum(one.calling_ae != other.calling_ae for one, other in itertools.pairwise(grouped))
        assert changes == max(len({each.calling_ae for each in rows}) - 1, 0)
    assert group_by_titles(rows, TitleRule(OWN)) == rows


@pytest.mark.parametrize(
    ("cause", "permanent", "expected"),
    [
        (Cause.CALLING, True, True),
        (Cause.CALLED, True, True),
        (Cause.REJECTED, True, True),
        (Cause.REJECTED, False, False),
        (Cause.FULL, False, False),
        (Cause.REFUSED, False, False),
        (Cause.ABORTED, False, False),
    ],
)
def test_a_rejection_blames_the_titles_of_a_sender_and_never_ours(
    cause: Cause, permanent: bool, expected: bool
) -> None:
    error = AssociationError("no", permanent=permanent, cause=cause)
    assert BOTH.is_refusal(Titles("CT1", "PACS"), error) is expected
    assert not BOTH.is_refusal(OWN, error)


def test_refused_titles_cost_no_attempt_and_end_by_age() -> None:
    policy = RetryPolicy(2000, 300_000, 3, 1_000_000)
    outcome = TitlesRefused("unknown")
    assert decide_delivery(outcome, 99, 0, policy, lambda: 1.0) == Retry(300_000, "unknown", is_attempt=False)
    decision = decide_delivery(outcome, 1, 1_000_000, policy, lambda: 1.0)
    assert isinstance(decision, Dead)
    assert decision.cause is DeathCause.AGE


@dataclass
class KnowingRemote:
    """A pynetdicom SCP that knows the AE titles of some callers."""

    port: int
    associations: list[tuple[str, str]] = field(default_factory=list)
    stored: list[tuple[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def knowing(tls: TLS, *calling: str) -> Iterator[KnowingRemote]:
    remote = KnowingRemote(0)

    def begin(event: Any) -> None:
        request = event.assoc.requestor.primitive
        remote.associations.append((request.calling_ae_title, request.called_ae_title))

    def store(event: Any) -> int:
        title = event.assoc.requestor.primitive.calling_ae_title
        remote.stored.append((title, str(event.request.AffectedSOPInstanceUID)))
        return 0

    ae = AE(AE_TITLE)
    ae.require_calling_aet = list(calling)
    ae.add_supported_context(CT, [EXPLICIT])
    ae.add_supported_context("1.2.840.10008.1.1")
    handlers = [(evt.EVT_ACCEPTED, begin), (evt.EVT_C_STORE, store)]
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=ssl_server_context(tls)
    )
    remote.port = server.socket.getsockname()[1]
    try:
        yield remote
    finally:
        server.shutdown()


def test_senders_keep_their_titles_and_one_that_is_unknown_stops_no_other(
    forwarding: Forwarding, tls: TLS
) -> None:
    with knowing(tls, "INGEST", "CT1", "MR1") as remote:
        forwarding.add(
            remote.port, pass_through=("calling_ae", "called_ae"), retry_max_seconds=0.2, linger_seconds=0
        )
        for number in range(1, 31):
            title = ("CT1", "UNKNOWN", "MR1")[number % 3]
            made = Made(sop=f"1.{number}", series=f"1.1.{number % 3}")
            forwarding.record(made, calling_ae=title, called_ae="GATE")
        drain_once(forwarding)
        assert remote.associations == [("MR1", "GATE"), ("CT1", "GATE")]
        for rest, title in ((0, "CT1"), (2, "MR1")):
            sent = [sop for calling, sop in remote.stored if calling == title]
            assert sent == [f"1.{number}" for number in range(1, 31) if number % 3 == rest]
        refused = [forwarding.row(f"1.{number}") for number in range(1, 31, 3)]
        assert {(each.state, each.attempts) for each in refused} == {("retry", 0)}
        assert "calling AE title UNKNOWN" in (refused[0].last_error or "")
        circuit = forwarding.ledger.circuits.read_circuits().get("pacs")
        assert circuit is None or circuit.state is CircuitState.CLOSED
        assert forwarding.states() == {"delivered": 20, "retry": 10}
    with knowing(tls, "INGEST", "UNKNOWN") as remote:
        forwarding.destinations[0] = forwarding.destinations[0].model_copy(update={"port": remote.port})
        wait_until_due(forwarding, [f"1.{number}" for number in range(1, 31, 3)])
        drain_once(forwarding)
        assert remote.associations == [("UNKNOWN", "GATE")]
    assert forwarding.states() == {"delivered": 30}


def test_the_audit_trail_names_the_titles_that_were_passed_through(forwarding: Forwarding, tls: TLS) -> None:
    with knowing(tls, "INGEST") as remote:
        forwarding.add(remote.port, pass_through=("calling_ae",))
        forwarding.record(Made(sop="1.1"), Made(sop="1.2"))
        with contextlib.closing(Ledger(forwarding.config.ledger_url, is_audited=True)) as ledger:
            leased = ledger.deliveries.lease_due("pacs", "me", 9, unix_ms(), 10_000)
            assert [(each.calling_ae, each.called_ae) for each in leased] == [("CT1", "INGEST")] * 2
            results = [
                DeliveryResult(id=each.id, owner="me", state=DeliveryState.DELIVERED, calling_ae=title)
                for each, title in zip(leased, ("CT1", ""), strict=True)
            ]
            ledger.deliveries.record_results("pacs", results, unix_ms())
            assert ledger.transfers.hold_lease("me", unix_ms(), unix_ms() + 10_000)
            ledger.transfers.merge_notes("me", unix_ms())
            keys = [group.key for group in ledger.transfers.list_unbegun(9)]
            assert sorted((key.direction, key.calling_ae) for key in keys) == [(SENT, ""), (SENT, "CT1")]
