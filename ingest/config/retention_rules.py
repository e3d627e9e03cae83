"""Rules of `[retention]`: limits that contradict each other, and a remover that would have nothing to do."""

from collections.abc import Collection, Iterator

from ingest.config.faults import Fault
from ingest.config.model import Config


def faults(config: Config, roles: Collection[str]) -> Iterator[Fault]:
    """Every fault of the section.

    Args:
        config: Whose types are sound.
        roles: What will run with it.
    """
    section = config.retention
    high, low = section.high_watermark, section.low_watermark
    if bool(high) != bool(low):
        set_one, other = ("high", "low") if high else ("low", "high")
        remedy = "set it too, or neither of both"
        yield Fault(f"retention.{other}_watermark", f"is missing for {set_one}_watermark", remedy)
    elif low > high:
        cause = f"{low:g} is above high_watermark, {high:g}"
        yield Fault("retention.low_watermark", cause, "make it smaller: removing stops there")
    if section.refuses and not section.max_bytes:
        remedy = 'set max_bytes too, or at_max_bytes = "remove"'
        yield Fault("retention.at_max_bytes", 'is "refuse", but max_bytes is no limit', remedy)
    if 0 < section.ledger_keep_days < section.keep_days:
        cause = f"{section.ledger_keep_days:g} is less than keep_days, {section.keep_days:g}"
        yield Fault("retention.ledger_keep_days", cause, "make it larger, or 0 to keep rows for ever")
    if set(roles) == {"retain"} and not section.wanted:
        cause = "nothing is ever removed with it"
        yield Fault("retention", cause, "set keep_days, max_bytes or high_watermark and low_watermark")
