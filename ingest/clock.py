"""The clocks of the node, in whole milliseconds.

Each clock has its own name, because values of two clocks must never be compared.

| clock | use | may be set |
|---|---|---|
| `unix_ms` | times that are kept: ledger columns, alarms, log | yes, by people and time servers |
| `monotonic_ms` | heartbeats that processes of one machine compare | no; stops while the machine sleeps |
| `boot_ms` | proof that the wall clock was set | no; counts while the machine sleeps |

Deadlines within one process use `time.monotonic` in seconds, as the standard library does.
Leases and pauses of deliveries follow `Ledger.unix_ms`, because hosts must agree on them.
"""

import time


def unix_ms() -> int:
    """Return the wall clock of this machine: milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Return the monotonic clock of this machine, which is the same in every process."""
    return time.monotonic_ns() // 1_000_000


def boot_ms() -> int:
    """Return the time since the machine was started, suspended time included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class WallClockSteps:
    """Steps of the wall clock since this object was created, found by comparison with `boot_ms`."""

    def __init__(self) -> None:
        """Read both clocks. Earlier steps are unknown."""
        self._offset_ms = _read_offset_ms()

    def forward_ms(self) -> int:
        """Return by how much the wall clock was set forward; 0 if it was set back."""
        return max(0, _read_offset_ms() - self._offset_ms)


def _read_offset_ms() -> int:
    return unix_ms() - boot_ms()
