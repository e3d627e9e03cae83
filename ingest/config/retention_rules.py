"""Rules of `[retention]`: limits that contradict each other, and a remover without work."""

from collections.abc import Collection, Iterator

from ingest.config.faults import Fault
from ingest.config.model import Config


def check_retention(config: Config, roles: Collection[str]) -> Iterator[Fault]:
    """Yield every fault of the section.

    Args:
        config: A configuration whose types are valid.
        roles: The roles that will run with it.
    """
    section = config.retention
    high, low = section.high_watermark, section.low_watermark
    if bool(high) != bool(low):
        given, missing = ("high", "low") if high else ("low", "high")
        remedy = "set it too, or neither of both"
        yield Fault(f"retention.{missing}_watermark", f"is missing for {given}_watermark", remedy)
    elif low > high:
        cause = f"{low:g} is above high_watermark, {high:g}"
        yield Fault("retention.low_watermark", cause, "make it smaller: removing stops there")
    if section.refuses_when_full and not section.max_bytes:
        remedy = 'set max_bytes too, or at_max_bytes = "remove"'
        yield Fault("retention.at_max_bytes", 'is "refuse", but max_bytes sets no limit', remedy)
    if section.only_committed and not section.only_delivered:
        cause = "an instance that was not delivered cannot be committed, and would be removed"
        yield Fault("retention.only_committed", cause, "set only_delivered = true too")
    if 0 < section.ledger_keep_days < section.keep_days:
        cause = f"{section.ledger_keep_days:g} is less than keep_days, {section.keep_days:g}"
        yield Fault("retention.ledger_keep_days", cause, "make it larger, or 0 to keep rows forever")
    if set(roles) == {"retain"} and not section.needs_remover:
        cause = "nothing is ever removed with it"
        yield Fault("retention", cause, "set keep_days, max_bytes or high_watermark and low_watermark")
