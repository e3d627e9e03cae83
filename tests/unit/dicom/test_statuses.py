"""What a status means for an instance, by table; the forwarder and `ingest send` say the same of each."""

from pathlib import Path

import pytest

from ingest.dicom.statuses import (
    Meaning,
    StatusPattern,
    StatusRules,
    classify_status,
    find_meaning,
    means_stored_only,
)
from ingest.requestor.send_files import FileResult
from ingest.workers.forward.retry_policy import Delivered, ResponseReceived, RetryPolicy, decide_delivery

POLICY = RetryPolicy(first_ms=1, max_ms=1, max_attempts=20, give_up_ms=1 << 40)


def decide(status: int) -> object:
    response = ResponseReceived(status, is_renegotiated=True)
    return decide_delivery(response, 1, 0, POLICY, lambda: 1.0)


def test_forwarder_and_send_agree_about_every_status() -> None:
    delivered = {status for status in range(1 << 16) if isinstance(decide(status), Delivered)}
    # PS3.7 Annex C: success and the class Warning; C.5.7: the remote has the instance already.
    assert delivered == {0x0000, 0x0001, 0x0107, 0x0111, 0x0116, *range(0xB000, 0xC000)}
    assert delivered == {
        status for status in range(1 << 16) if FileResult(Path("x"), status=status).is_stored
    }
    assert {s for s in range(1 << 16) if classify_status(s).value in {"success", "warning"}} == delivered - {
        0x0111
    }


@pytest.mark.parametrize("text", ["C211", "c211", "0xC211", "C211H", " C211 "])
def test_status_is_read_however_it_is_written(text: str) -> None:
    assert str(StatusPattern.parse(text)) == "C211"
    assert [status for status in range(1 << 16) if StatusPattern.parse(text).matches(status)] == [0xC211]


def test_x_stands_for_any_digit() -> None:
    found = [status for status in range(1 << 16) if StatusPattern.parse("01xX").matches(status)]
    assert found == list(range(0x0100, 0x0200))
    assert StatusPattern.parse("x1x1").matches(0xF1E1)
    assert not StatusPattern.parse("x1x1").matches(0xF1E2)


@pytest.mark.parametrize("text", ["", "C21", "C2111", "G000", "-C21", "C2 1", "0xC21", "٣٣٣٣"])
def test_what_is_no_status_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no status"):
        StatusPattern.parse(text)


def test_rule_with_more_digits_counts_and_none_takes_a_delivery_away() -> None:
    rules = StatusRules(
        retry=tuple(map(StatusPattern.parse, ("C2xx", "xxxx"))),
        dead=tuple(map(StatusPattern.parse, ("Cxxx", "C211", "B000"))),
    )
    meanings = {0xC211: Meaning.REFUSED, 0xC212: Meaning.TRY_AGAIN, 0xC300: Meaning.REFUSED}
    assert {status: rules.find_meaning(status) for status in meanings} == meanings
    assert rules.find_meaning(0xA900) is Meaning.TRY_AGAIN
    for status in (0x0000, 0x0111, 0xB000):
        assert rules.find_meaning(status) is find_meaning(status)


def test_pattern_of_nothing_but_deliveries_is_told_from_a_wider_one() -> None:
    said = {
        "0000": True,
        "Bxxx": True,
        "B0xx": True,
        "0111": True,
        "xxxx": False,
        "01xx": False,
        "C000": False,
    }
    assert {text: means_stored_only(StatusPattern.parse(text)) for text in said} == said
