"""When a study or series is complete. Without I/O.

Nothing of it came for a while, no open association carried it last, and no instance that waits in a spool
could belong to it. A spool is judged as a whole: it is persisted up to its low-water mark, the arrival of its
oldest entry. An entry behind the mark came later than the end of the wait.
"""

from collections.abc import Iterable

from ingest.ledger.receptions import Reception, SpoolMark

# INVARIANT 10: decisions are pure


def judge_completion(reception: Reception, low_water_ms: int, now_ms: int, idle_ms: int) -> bool:
    """Decide whether a study or series is complete.

    Args:
        reception: What the ledger knows of it.
        low_water_ms: The time up to which all that was received is in the ledger.
        now_ms: Current time.
        idle_ms: An association without progress for this long counts as ended.
    """
    if reception.due_at > min(low_water_ms, now_ms):
        return False
    return reception.seen_at is None or reception.seen_at <= now_ms - idle_ms


def find_low_water(marks: Iterable[SpoolMark], now_ms: int, silent_ms: int) -> int:
    """Return the time up to which all spools are persisted.

    A host that has been silent for `silent_ms` does not count any more. Otherwise a host that is switched off
    for good would hold up all studies.
    """
    return min([now_ms, *(mark.low_water for mark in marks if mark.seen_at > now_ms - silent_ms)])
