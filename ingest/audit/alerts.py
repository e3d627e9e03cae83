"""Security alerts of a process that may not wait: refused callers, and destinations that fail authentication.

An event loop reports an alert and goes on. A thread writes the messages, because each one waits for the disk.
An attacker may cause any number of alerts. Therefore each kind of alert about one node is written once a
minute at most, with the number of its occurrences, and the number of kinds that wait is limited.

If a process is killed, the alerts of its last half second are lost, and counts that were not written yet.
"""

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Final

from ingest.audit import messages
from ingest.audit.messages import EventKind, EventOutcome, Participant
from ingest.audit.recorder import AuditTrail
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.log import RateLimitedLog, describe_defect
from ingest.threads import start_task

FLUSH_SECONDS: Final = 0.5
REPEAT_SECONDS: Final = 60.0
"""Pause before the same alert is written again."""

KINDS_MAX: Final = 64
"""Kinds of alerts that are kept apart. Beyond that they are counted together."""

CLOSE_SECONDS: Final = 2.0

_log: Final = RateLimitedLog()


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the occurrences of one alert have in common."""

    node: str
    ae_title: str
    cause: str


_OTHERS: Final = _Kind("others", "", "more kinds of alerts came at once than are kept apart")


@dataclass(slots=True)
class _Pending:
    """Occurrences that are not written yet, and when the alert was last written."""

    count: int = 0
    first_at: int = 0
    written_at: float = float("-inf")


class SecurityAlerts:
    """The security alerts of one process. Create it after the fork."""

    def __init__(self, config: Config, *, repeat_seconds: float = REPEAT_SECONDS) -> None:
        """Prepare; a thread starts with the first alert."""
        trail = AuditTrail.open(config)
        self._trail = trail if trail is not None and trail.wants(EventKind.SECURITY) else None
        self._repeat_seconds = repeat_seconds
        self._lock = threading.Lock()
        self._pending: dict[_Kind, _Pending] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def report(self, node: str, ae_title: str, cause: str) -> None:
        """Report a failed node authentication. This does not wait.

        Args:
            node: Address of the caller, or host of the remote.
            ae_title: AE title that it has given; empty if it gave none.
            cause: Why it was refused; no patient data.
        """
        if self._trail is None:
            return
        kind = _Kind(node, ae_title, cause)
        with self._lock:
            if kind not in self._pending and len(self._pending) >= KINDS_MAX:
                kind = _OTHERS
            pending = self._pending.setdefault(kind, _Pending())
            pending.first_at = pending.first_at if pending.count else unix_ms()
            pending.count += 1
            if self._thread is None:
                # A thread that could not be started is tried again at the next alert.
                with contextlib.suppress(RuntimeError):
                    self._thread = start_task("audit-alerts", self._run)

    def close(self) -> None:
        """Write what waits."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            self._thread = None

    def _run(self) -> None:
        """Thread body: write due alerts until `close`, and then the rest."""
        while not self._stop.wait(FLUSH_SECONDS):
            self._flush(at_once=False)
        self._flush(at_once=True)

    def _flush(self, *, at_once: bool) -> None:
        now = time.monotonic()
        with self._lock:
            due = []
            for kind, pending in list(self._pending.items()):
                is_over = now - pending.written_at >= self._repeat_seconds
                if pending.count and (is_over or at_once):
                    due.append((kind, pending.count, pending.first_at))
                    pending.count, pending.written_at = 0, now
                elif not pending.count and is_over:
                    del self._pending[kind]
        for kind, count, first_at in due:
            try:
                self._write(kind, count, first_at)
            except Exception as error:  # the thread goes on with the next one
                _log.warning("audit_message_dropped", **describe_defect(error))

    def _write(self, kind: _Kind, count: int, first_at: int) -> None:
        trail = self._trail
        if trail is None:
            return
        titles = (kind.ae_title,) if kind.ae_title else ()
        # PS3.15 Table A.5.3.11-1: a performing participant is no requestor.
        peer = Participant(kind.ae_title or kind.node, ae_titles=titles, address=kind.node)
        repeated = "" if count == 1 else f" ({count} times)"
        trail.write(
            messages.build_security_alert(
                trail.source,
                first_at,
                [trail.process(), peer],
                alert=messages.NODE_AUTHENTICATION,
                # Minor failure: the node was kept out, so the protection worked.
                outcome=EventOutcome.MINOR_FAILURE,
                subject_type=messages.NODE_ID,
                subject=kind.node,
                description=f"{kind.cause}{repeated}",
            )
        )
