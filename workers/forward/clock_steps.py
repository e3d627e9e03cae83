"""How far the wall clock was set forward while a process runs: nothing grows older by that."""

from ingest.clock import boot_ms, unix_ms


class WallClock:
    """Compares the wall clock with the clock of the running kernel, which nobody sets (CLOCK_BOOTTIME)."""

    def __init__(self) -> None:
        """Begin: what was set before is not known."""
        self._apart_ms = _apart_ms()

    def set_forward_ms(self) -> int:
        """By how many milliseconds the wall clock was set forward since; 0 where it was set back."""
        return max(0, _apart_ms() - self._apart_ms)


def _apart_ms() -> int:
    return unix_ms() - boot_ms()
