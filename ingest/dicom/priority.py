"""Priority of deliveries, and the Priority (0000,0700) of a C-STORE request (PS3.7 Table 9.3-1).

Every decision is a function of values.
"""

from collections.abc import Collection
from enum import IntEnum
from typing import Final

MEDIUM: Final = 0x0000
HIGH: Final = 0x0001
LOW: Final = 0x0002


class Priority(IntEnum):
    """The priority of a delivery. A smaller number goes first."""

    URGENT = 0
    NORMAL = 1
    BULK = 2

    @property
    def word(self) -> str:
        """The word for it in configurations and lists."""
        return self.name.lower()


_OF_REQUEST: Final = {HIGH: Priority.URGENT, LOW: Priority.BULK}
_TO_REQUEST: Final = {Priority.URGENT: HIGH, Priority.NORMAL: MEDIUM, Priority.BULK: LOW}


def admit_requested(requested: int, *, allows_high: bool) -> int:
    """Return the Priority that counts. HIGH without `allow_priority` and odd values are MEDIUM."""
    if requested == LOW or (requested == HIGH and allows_high):
        return requested
    return MEDIUM


def decide_priority(of_routes: Collection[str], requested: int) -> Priority:
    """Decide the priority of a delivery.

    Args:
        of_routes: `priority` of the routes that name the destination; empty texts do not count. The most
            urgent one wins.
        requested: Priority of the C-STORE request. It counts only if no route has a priority.
    """
    named = [Priority[word.upper()] for word in of_routes if word]
    return min(named) if named else _OF_REQUEST.get(requested, Priority.NORMAL)


def find_request_priority(priority: Priority) -> int:
    """Return the Priority with which a delivery is sent on."""
    return _TO_REQUEST[priority]
