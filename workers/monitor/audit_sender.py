"""The sender of audit messages: takes them from the queue and sends them to the repository.

Syslog has no answer to a message, so the sender cannot know that a message was stored. It keeps each message
until TCP of the repository has acknowledged it and the connection has stood for another while. If the
connection ends before, the message is sent again: a repository that is stopped or killed costs a duplicate,
not a message.

The repository may be away for days. The pauses between attempts grow to a minute, and after `[audit]
away_seconds` there is an alarm. One process sends at a time, because it holds a lock.
"""

import contextlib
import os
import time
from collections import deque
from typing import Final

import structlog

from ingest.alarms import clear_alarm, raise_alarm
from ingest.audit import AuditTrail
from ingest.audit.sender_state import read_sender_state, write_sender_state
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import AssociationError, ConfigError
from ingest.filesystem.locks import try_lock
from ingest.requestor.audit_repository import RepositoryConnection, connect_to_repository

AWAY: Final = "audit_away"
"""Alarm: the repository has taken no message for `[audit] away_seconds`."""

SETTLE_SECONDS: Final = 1.0
"""Time that a connection must stand after its last byte was acknowledged, before messages are removed."""

STALL_SECONDS: Final = 30.0
"""Time in which TCP of the repository must acknowledge what was sent."""

TURN_SECONDS: Final = 2.0
"""Longest time that one turn sends, so that the other tasks of the monitor have theirs."""

BATCH: Final = 500
"""Messages that are sent before they are settled."""

FIRST_PAUSE_SECONDS: Final = 1.0
LAST_PAUSE_SECONDS: Final = 60.0
RECOUNT_SECONDS: Final = 3600.0

log = structlog.get_logger()


class AuditSender:
    """Sends the messages of one queue. `run` is one turn."""

    def __init__(self, config: Config, trail: AuditTrail, *, settle_seconds: float = SETTLE_SECONDS) -> None:
        """Prepare; the first turn takes the lock."""
        self._config = config
        self._trail = trail
        self._settle_seconds = settle_seconds
        self._lock: int | None = None
        self._connection: RepositoryConnection | None = None
        self._names: deque[str] = deque()
        self._unsettled: list[str] = []
        self._acknowledged_at: float | None = None
        self._last_byte_at = 0.0
        self._pause_seconds = 0.0
        self._try_at = 0.0
        self._recount_at = 0.0
        self._state = read_sender_state(trail.queue.folder)

    def run(self) -> None:
        """Settle what was sent, and send what waits.

        Raises:
            OSError: The queue cannot be read.
        """
        if not self._take_lock():
            return
        now = time.monotonic()
        if now >= self._recount_at:
            self._recount_at = now + RECOUNT_SECONDS
            self._trail.queue.recount()
        try:
            self._settle(now)
            if not self._unsettled and now >= self._try_at:
                self._send_batch(now)
        except (AssociationError, ConfigError) as error:
            self._handle_failure(str(error), now)
        self._trail.report_room()

    def close(self) -> None:
        """Send what waits, and settle it, within a few seconds. What is left is sent at the next start."""
        deadline = time.monotonic() + self._settle_seconds + TURN_SECONDS
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                self.run()
                if self._try_at > time.monotonic() or not self._trail.queue.list_names():
                    break
                time.sleep(0.05)
        self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> bool:
        """Take the lock of the sender: during a reload two monitors run for a moment."""
        if self._lock is None:
            folder = self._trail.queue.folder
            if not folder.exists():
                return False  # no message yet
            fd = os.open(folder / "sender.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not try_lock(fd):
                os.close(fd)
                return False
            self._lock = fd
        return True

    # --- send

    def _send_batch(self, now: float) -> None:
        """Send up to `BATCH` messages over an open connection, or open one first."""
        if not self._names:
            self._names.extend(self._trail.queue.list_names())
        if not self._names:
            return
        if self._connection is None:
            self._connection = connect_to_repository(self._config, self._trail.settings)
        deadline = now + TURN_SECONDS
        while self._names and len(self._unsettled) < BATCH and time.monotonic() < deadline:
            name = self._names.popleft()
            data = self._trail.queue.read(name)
            if data is None:
                continue
            # From here on the message counts as sent, and a failure sends it again.
            self._unsettled.append(name)
            self._connection.send(data)
        self._last_byte_at = time.monotonic()

    def _settle(self, now: float) -> None:
        """Remove messages that the repository has, as far as that can be known."""
        if self._connection is None:
            return
        try:
            self._connection.require_open()
        except AssociationError:
            if self._unsettled:
                raise
            self._disconnect()  # a repository may close an idle connection
            return
        if not self._unsettled:
            return
        if not self._connection.is_acknowledged():
            self._acknowledged_at = None
            # INVARIANT 7: every wait has a deadline
            if now - self._last_byte_at > STALL_SECONDS:
                raise AssociationError("the audit repository does not acknowledge what was sent")
            return
        if self._acknowledged_at is None:
            self._acknowledged_at = now
        if now - self._acknowledged_at >= self._settle_seconds:
            self._trail.queue.remove(self._unsettled)
            self._handle_success(len(self._unsettled))
            self._unsettled.clear()
            self._acknowledged_at = None

    def _disconnect(self) -> None:
        """Close the connection. Messages that are not settled are sent again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._unsettled.clear()
        self._names.clear()
        self._acknowledged_at = None

    # --- success and failure

    def _handle_success(self, count: int) -> None:
        state = self._state
        if state.failing_since:
            log.info("audit_repository_back")
        clear_alarm(self._config.run_dir, AWAY)
        state.sent += count
        state.sent_at = unix_ms()
        state.failing_since, state.error = 0, ""
        self._pause_seconds = 0.0
        write_sender_state(self._trail.queue.folder, state)

    def _handle_failure(self, cause: str, now: float) -> None:
        self._disconnect()
        state, now_ms = self._state, unix_ms()
        self._pause_seconds = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds), LAST_PAUSE_SECONDS)
        self._try_at = now + self._pause_seconds
        if not state.failing_since:
            log.warning("audit_repository_away", error=cause)
        # After a step of the clock to the past, the time of the failure counts from now.
        state.failing_since = min(state.failing_since or now_ms, now_ms)
        state.error = cause
        write_sender_state(self._trail.queue.folder, state)
        away_seconds = self._trail.settings.away_seconds
        if now_ms - state.failing_since >= away_seconds * 1000:
            raise_alarm(
                self._config.run_dir,
                AWAY,
                f"the audit repository has taken no message for {away_seconds:.0f} s: {cause}",
                "messages wait in data_dir/audit; see `ingest audit status`, then `ingest audit send-test`",
            )
