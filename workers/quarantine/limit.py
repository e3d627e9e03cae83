"""The limit on copies of refused instances in quarantine: `[receive] quarantine_max_bytes`.

Acknowledged instances have no limit: they are always kept. Only copies of refused instances have one, because
their senders know that the node did not store them.
"""

from ingest.alarms import QUARANTINE_FULL, clear_alarm, raise_alarm
from ingest.config.model import Config


class QuarantineLimit:
    """How many bytes the copies of refused instances may have together, and the alarm about it."""

    def __init__(self, config: Config) -> None:
        self._run_dir = config.run_dir
        self.max_bytes = config.receive.quarantine_max_bytes
        """0 means no limit."""

    def raise_alarm(self) -> None:
        """Raise the alarm, because a copy was not kept."""
        raise_alarm(
            self._run_dir,
            QUARANTINE_FULL,
            "the quarantine holds as many bytes of refused instances as it may: new copies are not kept",
            "look at them with `ingest quarantine list`, drop them with `ingest quarantine drop`, or raise "
            "[receive] quarantine_max_bytes",
        )

    def clear_alarm(self) -> None:
        """Clear the alarm, because a copy was kept."""
        clear_alarm(self._run_dir, QUARANTINE_FULL)
