"""The supervisor: forks the children of a node, watches, drains and reloads them. It serves nothing itself.

Before the fork: configuration, TLS contexts, listening sockets, scoreboard. Not before it: threads, event
loops, clients of Redis and SQL. Signal handlers only queue; the loop dispatches, then reaps, then manages.
"""

import contextlib
import fcntl
import importlib
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from ingest.config import load, notes
from ingest.config.check import notices
from ingest.config.model import Config
from ingest.errors import BootError, ConfigError
from ingest.log import Seldom
from ingest.log import configure as configure_log
from ingest.log import reopen as reopen_log
from ingest.node import listener, reload
from ingest.node.child import BOOT_EXIT, SIGNALS, fork
from ingest.node.embedded_queue import EmbeddedQueue
from ingest.node.endpoints import unbind
from ingest.node.generation import ALL_ROLES, BACK_OFF_SECONDS, Child, Generation, Place, first, following
from ingest.node.process import leave_no_core
from ingest.node.scoreboard import ACCEPTING, BOOTING, HEARTBEAT, PID, STATE, Scoreboard, now_ms
from ingest.tls.expiry import Watch
from ingest.tls.files import reading_once

WORKERS: Final = {
    "persist": "workers.persist:main",
    "forward": "workers.forward:main",
    "retain": "workers.retention:main",
}
"""Named, never imported here: imports run from workers to ingest, not back."""

TICK_SECONDS: Final = 0.5
UNREADABLE_AFTER: Final = 3
"""Ends of the embedded queue in a row after which its files are to blame."""

STUCK_MS: Final = 60_000
"""A listener without a heartbeat for so long is stuck in a call that will not return."""

GRACE_SECONDS: Final = 3.0

log = structlog.get_logger()


def run(path: Path, roles: frozenset[str]) -> int:
    """Run the given roles of a node until told to stop; returns the exit code.

    Raises:
        ConfigError: The configuration cannot be used.
        BootError: A port, folder or key cannot be used.
    """
    # What the node makes (ledger, log, spool id) tells of patients: none of it is for everybody.
    os.umask(os.umask(0o077) | 0o027)
    leave_no_core()
    config = load(path, roles=roles)
    configure_log(config.log)
    supervisor = Supervisor(path, config, roles)
    return supervisor.run()


class Supervisor:
    """One node's parent process."""

    def __init__(self, path: Path, config: Config, roles: frozenset[str]) -> None:
        self.path = path
        self.roles = roles
        self.children: dict[int, Child] = {}
        self.generation = Generation(0, config)
        self.board: Scoreboard | None = None
        self.queue: EmbeddedQueue | None = None
        self.exit_code = 0
        self._queue_place = Place("queue")
        self._certificates = Watch()
        self._seldom = Seldom()
        self._pending: deque[int] = deque()
        self._ready = False
        self._drain_until: float | None = None
        self._lock: int | None = None

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.generation.config

    def run(self) -> int:
        """Start, serve until stopped, return the exit code."""
        self._prepare_folders()
        wakeup = self._catch_signals()
        try:
            self._start()
            while not self._finished():
                select.select([wakeup], [], [], 0.02 if not self._ready else TICK_SECONDS)
                while select.select([wakeup], [], [], 0)[0]:
                    os.read(wakeup, 4096)
                self._turn()
        finally:
            self._kill_all()
            if self.queue is not None:
                self.queue.stop()
        log.info("stopped", exit_code=self.exit_code)
        return self.exit_code

    def _turn(self) -> None:
        while self._pending:
            number = signal.Signals(self._pending.popleft())
            if number != signal.SIGCHLD:
                log.info("signal", signal=number.name)
                getattr(self, f"_handle_{number.name.removeprefix('SIG').lower()}")()
        self._reap()
        self._manage()

    # --- start

    def _prepare_folders(self) -> None:
        config = self.config
        try:
            for folder in (config.data_dir, config.run_dir):
                folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            if "listen" in self.roles:
                self._take_lock(config.run_dir / "node.lock")
                self.board = Scoreboard.create(config.run_dir / "scoreboard")
        except OSError as error:
            where = error.filename or config.run_dir
            raise BootError(f"[node] data_dir: {where} cannot be used: {error.strerror}") from error

    def _take_lock(self, path: Path) -> None:
        """One node for a data folder. A record lock (fcntl), since children must not inherit it."""
        self._lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = os.read(self._lock, 32).decode(errors="replace").strip()
            raise BootError(
                f"[node] data_dir: process {owner or 'unknown'} runs a node on {path.parent.parent}; stop it"
            ) from error
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"{os.getpid()}\n".encode())

    def _catch_signals(self) -> int:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def queue(number: int, _frame: FrameType | None) -> None:
            self._pending.append(number)

        for number in SIGNALS:
            signal.signal(number, queue)
        return reader

    def _start(self) -> None:
        config = self.config
        with reading_once():
            self.generation = first(config, self.roles)
            self._tell_of_files()
        reload.note(config.run_dir, self.generation.number, began=time.time_ns())
        if self.roles == ALL_ROLES and not config.queue.url:
            self.queue = EmbeddedQueue(config.data_dir)
            self.queue.start()
        self._manage()

    # --- children

    def _manage(self) -> None:
        now = time.monotonic()
        if self._drain_until is not None:
            self._manage_drain(now, self._drain_until)
            return
        for place in self.generation.places:
            if not place.pid and now >= place.fork_at:
                self._fork(place)
        for watch in (partial(self._watch_queue, now), self._watch_heartbeats, self._certificates.look):
            try:
                watch()
            except Exception as error:  # of one duty, which is done again in the next turn
                self._seldom.warning("watch_failed", exc_info=error)
        if not self._ready and self._all_accept():
            self._ready = True
            self._say_ready()

    def _say_ready(self) -> None:
        """Answer the start on standard output, for people and for scripts that wait for it."""
        listening = [str(endpoint) for endpoint in self.generation.endpoints]
        log.info("ready", listening=listening)
        # Whoever started us may have closed it, or have gone: no reason to stop.
        if sys.stdout is not None:
            with contextlib.suppress(OSError):
                os.write(sys.stdout.fileno(), " ".join(["ready", *listening]).encode() + b"\n")

    def _all_accept(self) -> bool:
        """Whether every listener of this generation accepts; true where this node has none."""
        rows = [child.row for child in self.children.values() if child.row is not None]
        wanted = sum(place.role == "listen" for place in self.generation.places)
        board = self.board
        return board is None or sum(board.get(row, STATE) == ACCEPTING for row in rows) >= wanted

    def _fork(self, place: Place) -> None:
        row = None
        if place.role == "listen" and self.board is not None:
            row = self.board.free_row()
            if row is None:
                log.error("too_many_listeners")
                return
            self.board.set(row, STATE, BOOTING)
            self.board.set(row, HEARTBEAT, now_ms())
        try:
            pid = fork(place.role, lambda: self._work(place.role, row))
        except OSError as error:
            log.error("fork_failed", child=place.role, error=error.strerror)
            place.fork_at = time.monotonic() + BACK_OFF_SECONDS[-1]
            if row is not None and self.board is not None:
                self.board.clear(row)
            return
        if row is not None and self.board is not None:
            self.board.set(row, PID, pid)
        place.pid = pid
        self.children[pid] = Child(pid, place.role, self.generation.number, time.monotonic(), row)

    def _work(self, role: str, row: int | None) -> int:
        if row is not None and self.board is not None:
            return listener.run(self.config, self.generation.endpoints, self.board, row)
        module, _, name = WORKERS[role].partition(":")
        main: Callable[..., int] = getattr(importlib.import_module(module), name)
        if role == "forward":
            return main(self.config, threading.Event(), self.generation.remotes)
        return main(self.config, threading.Event())

    def _reap(self) -> None:
        for pid in list(self.children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._ended(self.children.pop(pid), os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, code: int) -> None:
        if child.row is not None and self.board is not None:
            self.board.clear(child.row)
        place = next((place for place in self.generation.places if place.pid == child.pid), None)
        if place is None or child.stopping:
            log.info("child_ended", child=child.role, child_pid=child.pid, code=code)
            return
        if code == BOOT_EXIT and not self._ready and self._drain_until is None:
            log.error("node_cannot_start", child=child.role)
            self.exit_code = BOOT_EXIT
            place.pid = 0
            self._handle_term()
            return
        now = time.monotonic()
        pause = place.died(now - child.started, now)
        # A worker that ends well was told to by somebody else, such as a terminal that signals all of us.
        say = log.info if code == 0 else log.error
        say("child_died", child=child.role, child_pid=child.pid, code=code, again_in_seconds=pause)

    def _watch_queue(self, now: float) -> None:
        queue, place = self.queue, self._queue_place
        if queue is None or queue.process is None or queue.process.poll() is None or now < place.fork_at:
            return
        log.error("embedded_queue_died", code=queue.process.returncode)
        place.died(now - place.fork_at, now)
        if place.failures > UNREADABLE_AFTER:
            log.error("embedded_queue_set_aside", remedy="nothing is lost: spool and ledger fill a new one")
            queue.set_aside()
            place.failures = 0
        try:
            queue.start()
        except BootError as error:
            log.error("embedded_queue_does_not_start", error=str(error))

    def _watch_heartbeats(self) -> None:
        if self.board is None:
            return
        for child in self.children.values():
            if child.row is not None and now_ms() - self.board.get(child.row, HEARTBEAT) > STUCK_MS:
                log.error("listener_stuck", child_pid=child.pid, silent_ms=STUCK_MS)
                self.board.set(child.row, HEARTBEAT, now_ms())
                os.kill(child.pid, signal.SIGKILL if child.stuck else signal.SIGABRT)
                child.stuck = True

    # --- signals

    def _handle_term(self) -> None:
        if self._drain_until is not None:
            log.warning("stopping_at_once")
            self._drain_until = 0.0
            return
        self._drain_until = time.monotonic() + self.config.node.drain_seconds
        self._signal_role("listen", signal.SIGTERM)
        if "listen" not in self.roles:
            self._signal_workers()

    _handle_int = _handle_term

    def _handle_usr1(self) -> None:
        reopen_log()
        for pid in self.children:
            os.kill(pid, signal.SIGUSR1)

    def _handle_hup(self) -> None:
        """Take a new configuration for new associations; the running ones end with the old one."""
        if self._drain_until is not None:
            return
        with reading_once():
            self._reload(self.generation)

    def _reload(self, old: Generation) -> None:
        began = time.time_ns()
        try:
            self.generation = self._next_generation()
        except Exception as error:
            faults = list(error.faults) if isinstance(error, ConfigError) else [str(error)]
            # Whatever it is, a defect of ours as well: what runs must not end with it.
            unforeseen = None if isinstance(error, ConfigError | BootError) else error
            log.error(
                "reload_refused", faults=faults, in_force="the configuration read before", exc_info=unforeseen
            )
            reload.note(self.config.run_dir, old.number, faults, began=began)
            return
        for child in self.children.values():
            # One that is ending already would take a second signal for more haste.
            if not child.stopping:
                child.stopping = True
                os.kill(child.pid, signal.SIGHUP if child.role == "listen" else signal.SIGTERM)
        unbind(old.endpoints, keep=self.generation.endpoints)
        self._tell_of_files()
        log.info("reloaded", generation=self.generation.number)
        reload.note(self.config.run_dir, self.generation.number, began=began)

    def _tell_of_files(self) -> None:
        """Of what the configuration names: what others should know now, and what ends later."""
        try:
            for notice in [*notes(self.path), *notices(self.config)]:
                log.warning("notice", key=notice.key, cause=notice.cause, remedy=notice.remedy)
            self._certificates.take(self.config)
        except Exception as error:  # it is in force already, and nothing depends on what is said of it
            log.error("notices_not_told", exc_info=error)

    def _next_generation(self) -> Generation:
        """The configuration as it is now.

        Raises:
            ConfigError: It cannot be used; nothing has changed.
            BootError: Likewise.
        """
        old = self.generation
        new = following(old, self.path, self.roles)
        try:
            configure_log(new.config.log)
        except BootError:
            unbind(new.endpoints, keep=old.endpoints)
            raise
        return new

    # --- the end

    def _signal_role(self, role: str, number: signal.Signals) -> None:
        for child in self.children.values():
            if child.role == role:
                child.stopping = True
                os.kill(child.pid, number)

    def _signal_workers(self) -> None:
        for role in WORKERS:
            self._signal_role(role, signal.SIGTERM)

    def _manage_drain(self, now: float, until: float) -> None:
        """Listeners first, then the workers; whoever is left at the deadline is killed."""
        listening = any(child.role == "listen" for child in self.children.values())
        if not listening and not all(child.stopping for child in self.children.values()):
            self._signal_workers()
            self._drain_until = max(until, now + GRACE_SECONDS) if until else until
        if now > until + (GRACE_SECONDS if until else 0.0):
            self._kill_all()

    def _finished(self) -> bool:
        return self._drain_until is not None and not self.children

    def _kill_all(self) -> None:
        for pid in list(self.children):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            del self.children[pid]
