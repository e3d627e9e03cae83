"""How far the wall clock was set forward while a process runs: nothing grows older by that."""

import time


class WallClock:
    """Compares the wall clock with the clock of the running kernel, which nobody sets (CLOCK_BOOTTIME)."""

    def __init__(self) -> None:
        """Begin: what was set before is not known."""
        self._apart_ms = _apart_ms()

    def set_forward_ms(self) -> int:
        """By how many milliseconds the wall clock was set forward since; 0 where it was set back."""
        return max(0, _apart_ms() - self._apart_ms)


def _apart_ms() -> int:
    return (time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // 1_000_000
