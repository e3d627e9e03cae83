"""Child processes of a supervisor: forking, reaping, signals and heartbeats."""

import gc
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from ingest.acceptor.scoreboard import ACCEPTING, BOOTING, HEARTBEAT, PID, ROWS, STATE, Scoreboard
from ingest.clock import monotonic_ms
from ingest.log import RateLimitedLog
from ingest.supervisor.child import fork_child
from ingest.supervisor.generation import ALL_ROLES, BACK_OFF_SECONDS, Generation, WorkerSlot

STUCK_MS: Final = 60_000
"""A listener without a heartbeat for this long hangs in a call that does not return."""

GRACE_SECONDS: Final = 3.0
"""Time between the signal that ends a process and the signal that kills it."""

log = structlog.get_logger()


@dataclass(slots=True)
class ChildProcess:
    """One process that this supervisor forked.

    Attributes:
        pid: Process id.
        role: "listen", "persist", "forward", "retain", "monitor" or "console".
        generation: Number of the configuration generation that it runs with.
        started_at: Time of the fork, in seconds of the monotonic clock.
        row: Row of the scoreboard, for a listener.
        is_stopping: Whether the supervisor has asked it to end.
        is_stuck: Whether the supervisor has aborted it because its heartbeat was missing.
        retired_at: Time when a newer generation came into force; None before.
        aborted_at: Time when it was asked to abort its associations; None before.
    """

    pid: int
    role: str
    generation: int
    started_at: float
    row: int | None = None
    is_stopping: bool = False
    is_stuck: bool = False
    retired_at: float | None = None
    aborted_at: float | None = None


class Children:
    """All child processes of one supervisor.

    Attributes:
        board: Scoreboard of the listeners; None on a node without listeners.
    """

    def __init__(self, run_child: Callable[[Generation, str, int | None], int]) -> None:
        """Begin without children.

        Args:
            run_child: Body of a child: does the work of a role and returns the exit code. Its arguments are
                the generation, the role and the row of the scoreboard.
        """
        self.board: Scoreboard | None = None
        self._run_child = run_child
        self._by_pid: dict[int, ChildProcess] = {}
        self._log = RateLimitedLog()

    def __len__(self) -> int:
        return len(self._by_pid)

    def __iter__(self) -> Iterator[ChildProcess]:
        return iter(list(self._by_pid.values()))

    # --- fork and reap

    def fork_missing(self, generation: Generation, now: float, roles: frozenset[str] = ALL_ROLES) -> None:
        """Fork a process for each empty worker slot of `generation` whose pause is over."""
        for slot in generation.slots:
            if slot.role in roles and not slot.pid and now >= slot.fork_at:
                self._fork(generation, slot)

    def _fork(self, generation: Generation, slot: WorkerSlot) -> None:
        row = None
        if slot.role == "listen" and self.board is not None:
            row = self.board.find_free_row()
            if row is None:
                # Rows become free when the listeners of earlier generations end.
                self._log.warning("listener_waits_for_a_row", rows=ROWS)
                return
            self.board.set(row, STATE, BOOTING)
            self.board.set(row, HEARTBEAT, monotonic_ms())
        # The collector of the child writes to no frozen object. Parent and child therefore keep sharing the
        # memory pages of everything that exists now.
        gc.freeze()
        try:
            pid = fork_child(slot.role, lambda: self._run_child(generation, slot.role, row))
        except OSError as error:
            log.error("fork_failed", child=slot.role, error=error.strerror)
            slot.fork_at = time.monotonic() + BACK_OFF_SECONDS[-1]
            if row is not None and self.board is not None:
                self.board.clear_row(row)
            return
        finally:
            gc.unfreeze()
        if row is not None and self.board is not None:
            self.board.set(row, PID, pid)
        slot.pid = pid
        self._by_pid[pid] = ChildProcess(pid, slot.role, generation.number, time.monotonic(), row)

    def reap(self) -> Iterator[tuple[ChildProcess, int, resource.struct_rusage]]:
        """Forget each child that has ended; yield it with its exit code and the resources that it used."""
        for pid in list(self._by_pid):
            ended, status, use = os.wait4(pid, os.WNOHANG)
            if ended:
                child = self._by_pid.pop(pid)
                if child.row is not None and self.board is not None:
                    self.board.clear_row(child.row)
                yield child, os.waitstatus_to_exitcode(status), use

    # --- listeners

    def are_listeners_accepting(self, generation: Generation) -> bool:
        """Return whether all listeners of `generation` accept; true on a node without listeners."""
        board = self.board
        if board is None:
            return True
        rows = [
            child.row
            for child in self
            if child.row is not None and child.generation == generation.number and not child.is_stopping
        ]
        wanted = sum(slot.role == "listen" for slot in generation.slots)
        return sum(board.get(row, STATE) == ACCEPTING for row in rows) >= wanted

    def is_any_listener_alive(self) -> bool:
        """Return whether a listener has shown a heartbeat lately; true on a node without listeners."""
        board = self.board
        if board is None:
            return True
        rows = [child.row for child in self if child.row is not None]
        return any(monotonic_ms() - board.get(row, HEARTBEAT) <= STUCK_MS for row in rows)

    def abort_stuck_listeners(self) -> None:
        """Abort each listener whose heartbeat is missing; kill it if that does not help."""
        board = self.board
        if board is None:
            return
        for child in self:
            if child.row is not None and monotonic_ms() - board.get(child.row, HEARTBEAT) > STUCK_MS:
                log.error("listener_stuck", child_pid=child.pid, silent_ms=STUCK_MS)
                board.set(child.row, HEARTBEAT, monotonic_ms())
                os.kill(child.pid, signal.SIGKILL if child.is_stuck else signal.SIGABRT)
                child.is_stuck = True

    # --- generations

    def retire_other_generations(self, number: int) -> None:
        """Let the children of all generations but `number` finish and end."""
        now = time.monotonic()
        for child in self:
            # A child that is ending already would understand a second signal as an order to hurry.
            if child.generation != number and not child.is_stopping:
                child.is_stopping, child.retired_at = True, now
                os.kill(child.pid, signal.SIGHUP if child.role == "listen" else signal.SIGTERM)

    def stop_generation(self, number: int) -> None:
        """End the children of one generation. Listeners drain, because they may have associations."""
        for child in self:
            if child.generation == number and not child.is_stopping:
                child.is_stopping = True
                os.kill(child.pid, signal.SIGTERM)

    def end_listeners_retired_before(self, moment: float) -> None:
        """End the listeners that were retired before `moment`, in seconds of the monotonic clock."""
        for child in self:
            if child.retired_at is not None and child.retired_at < moment and child.role == "listen":
                _end_listener(child)

    def end_oldest_generations(self, keep: int) -> None:
        """End the listeners of all retired generations but the newest `keep`."""
        retired = {child.generation for child in self if child.retired_at is not None}
        ending = sorted(retired)[: max(len(retired) - keep, 0)]
        for child in self:
            if child.generation in ending and child.role == "listen":
                _end_listener(child)

    # --- signals to all

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every child."""
        for child in self:
            os.kill(child.pid, number)

    def stop_role(self, role: str) -> None:
        """Ask the children of a role to finish their work and end."""
        for child in self:
            if child.role == role:
                child.is_stopping = True
                os.kill(child.pid, signal.SIGTERM)

    def kill_all(self) -> None:
        """Kill every child at once, and wait for its end."""
        for pid in list(self._by_pid):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            del self._by_pid[pid]


def _end_listener(child: ChildProcess) -> None:
    """Have a retired listener abort its associations and end; kill it if it does not end."""
    now = time.monotonic()
    if child.aborted_at is None:
        child.aborted_at = now
        log.warning("old_listener_ended", child_pid=child.pid, generation=child.generation)
        os.kill(child.pid, signal.SIGUSR2)
    elif now - child.aborted_at > GRACE_SECONDS:
        os.kill(child.pid, signal.SIGKILL)
