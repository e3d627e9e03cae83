"""Shared memory of supervisor and console, and the watch over the console.

The node never waits for the console. If the console dies, hangs or cannot bind its address, an alarm is
raised and the supervisor tries again. Reception continues.
"""

import mmap
import os
import signal
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from ingest.alarms import clear_alarm, raise_alarm, standing_alarms
from ingest.clock import monotonic_ms
from ingest.supervisor.children import ChildProcess

ROLE: Final = "console"

CONSOLE_AWAY: Final = "console_away"
"""Name of the alarm for a console that does not serve."""

HUNG_SECONDS: Final = 20.0
"""A console without a heartbeat for this long is killed. At low priority a busy node may delay a beat."""

BOOT_SECONDS: Final = 120.0
"""A new console without its first heartbeat for this long is killed."""

RETIRED_SECONDS: Final = 10.0
"""A console of an earlier generation that has not ended after this long is killed: it keeps the port."""

AWAY_SECONDS: Final = 20.0
"""A console that does not serve for this long is an alarm. One that died serves again within seconds.

One that cannot bind its address raises the alarm itself before that, and names the cause.
"""

_WORD: Final = struct.Struct("=q")
_HEARTBEAT: Final = 0
_DRAINING: Final = _WORD.size

log = structlog.get_logger()


class ConsoleLink:
    """Two words of memory that a supervisor shares with its console.

    Memory needs no disk: a full one must not look like a console that hangs. Each word has one writer.
    """

    def __init__(self) -> None:
        """Create the memory. Call this before the fork."""
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def beat(self) -> None:
        """In the console: show that its event loop turns and its requests end."""
        _WORD.pack_into(self._memory, _HEARTBEAT, monotonic_ms())

    def forget_heartbeat(self) -> None:
        """Forget the past console, because its process has ended."""
        _WORD.pack_into(self._memory, _HEARTBEAT, 0)

    def read_heartbeat(self) -> float | None:
        """Return the time of the last heartbeat, in seconds of the monotonic clock; None without one."""
        beat = _WORD.unpack_from(self._memory, _HEARTBEAT)[0]
        return beat / 1000 if beat else None

    def set_draining(self) -> None:
        """In the supervisor: show that the node is stopping."""
        _WORD.pack_into(self._memory, _DRAINING, 1)

    @property
    def is_draining(self) -> bool:
        """Whether the node is stopping."""
        return bool(_WORD.unpack_from(self._memory, _DRAINING)[0])


class ConsoleWatch:
    """The supervisor's watch over its console: kills one that hangs, and keeps the alarm."""

    def __init__(self, run_dir: Path) -> None:
        """Begin with a console that has just gone, so that a new node has time to start one."""
        self.link = ConsoleLink()
        self._run_dir = run_dir
        self._away_since: float | None = time.monotonic()
        self._is_alarm_known_cleared = False

    def forget_process(self, now: float) -> None:
        """Note that the console has ended."""
        self.link.forget_heartbeat()
        self._note_away(now)

    def watch(self, children: Iterable[ChildProcess], now: float, *, is_wanted: bool) -> None:
        """Kill a console that hangs; raise or clear the alarm."""
        for child in children:
            if child.role == ROLE and not child.is_stuck and self._is_hung(child, now):
                log.error("console_hangs", child_pid=child.pid)
                os.kill(child.pid, signal.SIGKILL)
                child.is_stuck = True
        if not is_wanted or self._is_serving(now):
            self._away_since = None
            if not self._is_alarm_known_cleared:
                clear_alarm(self._run_dir, CONSOLE_AWAY)
                self._is_alarm_known_cleared = True
            return
        self._note_away(now)
        if self._away_since is not None and now - self._away_since > AWAY_SECONDS:
            self._raise_alarm()

    def _is_serving(self, now: float) -> bool:
        beat = self.link.read_heartbeat()
        return beat is not None and now - beat < HUNG_SECONDS

    def _note_away(self, now: float) -> None:
        if self._away_since is None:
            self._away_since = now
        self._is_alarm_known_cleared = False

    def _is_hung(self, child: ChildProcess, now: float) -> bool:
        if child.retired_at is not None:
            return now - child.retired_at > RETIRED_SECONDS
        beat = self.link.read_heartbeat()
        # A heartbeat from before the fork is one of an earlier console.
        if beat is None or beat < child.started_at:
            return now - child.started_at > BOOT_SECONDS
        return now - beat > HUNG_SECONDS

    def _raise_alarm(self) -> None:
        # A console that cannot start raises the alarm itself and names the cause.
        if any(alarm.name == CONSOLE_AWAY for alarm in standing_alarms(self._run_dir)):
            return
        raise_alarm(
            self._run_dir,
            CONSOLE_AWAY,
            "the console does not answer, or ends again and again",
            "look for `console` in the log; receiving and forwarding go on",
        )
