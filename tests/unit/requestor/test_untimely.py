"""What a reload does not take since it is not valid now, and what is no reason to refuse one."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ingest.checks.tls import Validity, find_untimely, list_validities
from ingest.config.model import Config
from ingest.tls.keys import pairs

NOW = datetime(2030, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)

GOOD = Validity(
    "aa", "tls.a.certificate", "a.crt: the certificate (CN=a)", NOW - DAY, NOW + DAY, "name another"
)
ENDED = replace(GOOD, digest="bb", end=NOW)
EARLY = replace(GOOD, digest="cc", begin=NOW + DAY / 2)
LIST = replace(GOOD, digest="dd", issuer="CN=x")
LATE = replace(LIST, digest="ee", end=NOW - DAY / 2)


@pytest.mark.parametrize(
    ("new", "held", "refused"),
    [
        ([GOOD], [], False),
        ([ENDED], [GOOD], True),
        ([ENDED], [ENDED], False),
        ([replace(ENDED, key="tls.renamed.certificate")], [ENDED], False),
        ([ENDED], [EARLY], True),
        ([EARLY], [GOOD], True),
        ([LATE], [LIST], True),
        ([LATE], [LATE], False),
        ([LATE], [replace(LATE, digest="ff")], False),  # the issuer publishes late
        ([LATE], [], False),
    ],
)
def test_new_thing_that_is_not_valid_now_is_refused(
    new: list[Validity], held: list[Validity], *, refused: bool
) -> None:
    assert bool(find_untimely(new, held, NOW)) == refused


def test_sections_in_use_are_looked_at_and_of_trust_what_is_best(tmp_path):
    now = datetime.now(UTC)
    for name, start, days in (("own", -9, 99), ("ended", -9, 5), ("early", 1, 5)):
        made = pairs.issue_self_signed(name, key_type="ec", start=now + start * DAY, days=days)
        pairs.write_pair(made, tmp_path / name)
    pair = {"certificate": f"{tmp_path}/own.crt", "private_key": f"{tmp_path}/own.key"}

    def found(*trusted, used="a"):
        section = {**pair, "trusted": [f"{tmp_path}/{name}.crt" for name in trusted]}
        config = Config.model_validate({"tls": {"a": section}, "listeners": [{"port": 1, "tls": used}]})
        return find_untimely(list_validities(config, now), [], now)

    assert found("ended", "own", "early") == []
    [said] = found("early")
    assert said.startswith("tls.a.trusted: the certificate in it is not valid before")
    assert "is not valid before" in found("early", "ended")[0]
    [said] = found("ended")
    assert "ended on" in said
    assert found("ended", used=False) == []
