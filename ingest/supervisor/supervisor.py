"""The supervisor: forks the children of a node, watches, drains and reloads them. It serves nothing itself.

Before the fork: configuration, TLS contexts, listening sockets, scoreboard. Not before it: threads, event
loops, clients of Redis and SQL. Signal handlers only queue; the loop dispatches, then reaps, then manages.
"""

import contextlib
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from ingest.acceptor import listener
from ingest.acceptor.endpoints import Endpoint, unbind
from ingest.acceptor.scoreboard import ACCEPTING, BOOTING, HEARTBEAT, PID, ROWS, STATE, Scoreboard
from ingest.alarms import Severity, clear_alarm, raise_alarm
from ingest.checks import file_systems
from ingest.checks.node import notices
from ingest.clock import monotonic_ms
from ingest.config.model import Config
from ingest.config.reader import load_config, read_notes
from ingest.errors import BootError, ConfigError, IngestError
from ingest.filesystem.calls import TROUBLE
from ingest.log import RateLimitedLog
from ingest.log import configure as configure_log
from ingest.log import reopen as reopen_log
from ingest.requestor.transport import Remote
from ingest.spool import store_capacity
from ingest.supervisor import reload_client
from ingest.supervisor.child import BOOT_EXIT, SIGNALS, fork
from ingest.supervisor.disk_reserve import DiskReserve
from ingest.supervisor.embedded_queue import EmbeddedQueue
from ingest.supervisor.generation import (
    ALL_ROLES,
    BACK_OFF_SECONDS,
    Child,
    Generation,
    Place,
    first,
    following,
)
from ingest.supervisor.process import leave_no_core
from ingest.tls.expiry import ExpiryWatch
from ingest.tls.keys.files import cache_file_reads

WORKERS: Final = {
    "persist": "ingest.workers.persist.worker:main",
    "forward": "ingest.workers.forward.worker:main",
    "retain": "ingest.workers.retention.remover:main",
}
"""Named, never imported here: imports run from workers to ingest, not back."""

PROBE_SECONDS: Final = 10.0
"""How long the file systems of the node may take to show what they can do."""

DISK_FULL: Final = "disk_full"
"""The alarm for a full disk of the data folder."""

TICK_SECONDS: Final = 0.5
UNREADABLE_AFTER: Final = 3
"""Ends of the embedded queue in a row after which its files are to blame."""

RELOAD_SECONDS: Final = 60.0
"""How long the listeners of a new configuration may take until they accept; then the old ones go on."""

OLD_GENERATIONS: Final = 1
"""How many configurations before the one in force may still serve associations when a reload begins. With the
one that retires then, two may do so at a time."""

STUCK_MS: Final = 60_000
"""A listener without a heartbeat for so long is stuck in a call that will not return."""

GRACE_SECONDS: Final = 3.0

FOLDER_MISSED: Final = 2
"""Looks in a row that find another data folder, or none, before the node ends."""

REPLACED_EXIT: Final = 1
"""The exit code of a node whose data folder was replaced under it."""

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
    config = load_config(path, roles=roles)
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
        self._certificates = ExpiryWatch()
        self._seldom = RateLimitedLog()
        self._pending: deque[int] = deque()
        # The configuration that a reload is about to put in force, until its listeners accept.
        self._next: Generation | None = None
        self._reading = contextlib.ExitStack()
        self._next_began = 0
        self._next_deadline = 0.0
        self._ready = False
        self._drain_until: float | None = None
        self._lock: int | None = None
        self._reserve = DiskReserve(config.data_dir, config.run_dir / "reserve")
        self._was_short: bool | None = None
        self._wakeup: tuple[int, ...] = ()
        self._folder: os.stat_result | None = None
        self._folder_missed = 0

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.generation.config

    def run(self) -> int:
        """Start, serve until stopped, return the exit code."""
        self._prepare_folders()
        self._require_file_systems()
        wakeup = self._catch_signals()
        try:
            self._start()
            while not self._finished():
                select.select([wakeup], [], [], TICK_SECONDS if self._ready and self._next is None else 0.02)
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
        for number in self._due_signals():
            if number != signal.SIGCHLD:
                log.info("signal", signal=number.name)
                getattr(self, f"_handle_{number.name.removeprefix('SIG').lower()}")()
        self._reap()
        self._manage()

    def _due_signals(self) -> list[signal.Signals]:
        """The signals to handle now; a HUP waits while an earlier reload is under way."""
        numbers = [signal.Signals(self._pending.popleft()) for _ in range(len(self._pending))]
        if self._next is None:
            return numbers
        if signal.SIGHUP in numbers:
            self._pending.append(signal.SIGHUP)
        return [number for number in numbers if number != signal.SIGHUP]

    # --- start

    def _prepare_folders(self) -> None:
        config = self.config
        # First of all: the disk may be full, and what follows needs some room.
        self._reserve.look()
        try:
            for folder in (config.data_dir, config.run_dir):
                folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._folder = os.stat(config.run_dir)
            self._reserve.look(at_once=True)
            if "listen" in self.roles:
                self._take_lock(config.run_dir / "node.lock")
                self.board = Scoreboard.create(config.run_dir / "scoreboard")
            else:
                self._share_lock(config.run_dir / reload_client.WORKERS_LOCK)
        except OSError as error:
            cause = f"[node] data_dir: {error.filename or config.run_dir} cannot be used: {error.strerror}"
            if error.errno in TROUBLE:
                raise IngestError(f"{cause}; make room, or see to the disk") from error
            raise BootError(cause) from error

    def _require_file_systems(self) -> None:
        """Start on no file system that could not keep what would be acknowledged.

        Raises:
            BootError: One lacks a call that has no fall-back as safe.
        """
        found = file_systems.faults_within(self.config, self.roles, PROBE_SECONDS)
        for fault in found:
            if fault.is_note:
                log.warning("notice", key=fault.key, cause=fault.cause, remedy=fault.remedy)
        serious = [str(fault) for fault in found if not fault.is_note]
        if serious:
            raise BootError("\n".join(serious))

    def _take_lock(self, path: Path) -> None:
        """One node for a data folder. A record lock (fcntl), since children must not inherit it."""
        try:
            self._lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        except OSError as error:
            if error.errno not in TROUBLE:
                raise
            self._take_name(path)
            return
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = os.read(self._lock, 32).decode(errors="replace").strip()
            raise BootError(
                f"[node] data_dir: process {owner or 'unknown'} runs a node on {path.parent.parent}; stop it"
            ) from error
        with contextlib.suppress(OSError):  # a full disk
            # No longer than before where that is possible, so that it needs no new block.
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
            os.ftruncate(self._lock, len(f"{os.getpid()}\n"))

    def _take_name(self, path: Path) -> None:
        """Exclude other nodes on this host where the disk takes no file for a lock."""
        facts = path.parent.stat()
        taken = socket.socket(socket.AF_UNIX)
        try:
            # unix(7): an abstract name, which needs no file and ends with the process.
            taken.bind(f"\0dicom-ingest {facts.st_dev} {facts.st_ino}")
        except OSError as error:
            raise BootError(f"[node] data_dir: another node runs on {path.parent.parent}; stop it") from error
        self._lock = taken.detach()

    def _share_lock(self, path: Path) -> None:
        """Show `ingest status` that workers run here; several supervisors may."""
        self._lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        fcntl.lockf(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _catch_signals(self) -> int:
        reader, writer = self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def queue(number: int, _frame: FrameType | None) -> None:
            self._pending.append(number)

        for number in SIGNALS:
            signal.signal(number, queue)
        return reader

    def _start(self) -> None:
        config = self.config
        with cache_file_reads():
            self.generation = first(config, self.roles)
            self._tell_of_files()
        reload_client.note(config.run_dir, self.generation.number, began=time.monotonic_ns())
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
        self._fill(self.generation, now)
        self._go_on_reloading(now)
        self._end_old_generations(now)
        for watch in (
            self._watch_folder,
            self._watch_disk,
            partial(self._watch_queue, now),
            self._watch_heartbeats,
            self._certificates.log_due_warnings,
        ):
            try:
                watch()
            except Exception as error:  # of one duty, which is done again in the next turn
                self._seldom.warning("watch_failed", exc_info=error)
        if not self._ready and self._all_accept(self.generation):
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

    def _all_accept(self, generation: Generation) -> bool:
        """Whether every listener of a generation accepts; true where this node has none."""
        board = self.board
        if board is None:
            return True
        rows = [
            child.row
            for child in self.children.values()
            if child.row is not None and child.generation == generation.number and not child.stopping
        ]
        wanted = sum(place.role == "listen" for place in generation.places)
        return sum(board.get(row, STATE) == ACCEPTING for row in rows) >= wanted

    def _fill(self, generation: Generation, now: float, roles: frozenset[str] = ALL_ROLES) -> None:
        """Fork what is missing of a generation."""
        for place in generation.places:
            if place.role in roles and not place.pid and now >= place.fork_at:
                self._fork(generation, place)

    def _fork(self, generation: Generation, place: Place) -> None:
        row = None
        if place.role == "listen" and self.board is not None:
            row = self.board.free_row()
            if row is None:
                # Rows come free when listeners of earlier generations end, which is seen to.
                self._seldom.warning("listener_waits_for_a_row", rows=ROWS)
                return
            self.board.set(row, STATE, BOOTING)
            self.board.set(row, HEARTBEAT, monotonic_ms())
        # What is frozen no collection of the child writes to, and so parent and children share its memory.
        gc.freeze()
        try:
            pid = fork(place.role, lambda: self._work(generation, place.role, row))
        except OSError as error:
            log.error("fork_failed", child=place.role, error=error.strerror)
            place.fork_at = time.monotonic() + BACK_OFF_SECONDS[-1]
            if row is not None and self.board is not None:
                self.board.clear(row)
            return
        finally:
            gc.unfreeze()
        if row is not None and self.board is not None:
            self.board.set(row, PID, pid)
        place.pid = pid
        self.children[pid] = Child(pid, place.role, generation.number, time.monotonic(), row)

    def _work(self, generation: Generation, role: str, row: int | None) -> int:
        """Do the work of a role; the body of a child."""
        board, config = self.board, generation.config
        endpoints, remotes = self._let_go_of_others(generation, role)
        if row is not None and board is not None:
            return listener.run(config, endpoints, board, row)
        module, _, name = WORKERS[role].partition(":")
        main: Callable[..., int] = getattr(importlib.import_module(module), name)
        if role == "forward":
            return main(config, threading.Event(), remotes)
        return main(config, threading.Event())

    def _let_go_of_others(
        self, generation: Generation, role: str
    ) -> tuple[tuple[Endpoint, ...], Mapping[str, Remote]]:
        """In a child: close the sockets and forget the keys that its role does not need.

        A worker that kept a listening socket open would hold the port after a reload that gives it up. Keys
        in its memory could be read by an attacker who gets into it.

        Returns:
            What the role does need: endpoints of a listener, remotes of a forward worker.
        """
        endpoints = generation.endpoints if role == "listen" else ()
        remotes = generation.remotes if role == "forward" else {}
        for each in (self.generation, self._next):
            if each is not None:
                unbind(each.endpoints, keep=endpoints)
        self._reading.close()
        self.generation, self._next = Generation(generation.number, generation.config), None
        generation.endpoints, generation.remotes = endpoints, remotes
        for fd in (self._lock, *self._wakeup):
            if fd is not None:
                os.close(fd)
        # Contexts are freed, and OpenSSL overwrites their keys: most with their last reference, above; here
        # what lay in cycles since the fork.
        gc.collect()
        return endpoints, remotes

    def _reap(self) -> None:
        for pid in list(self.children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._ended(self.children.pop(pid), os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, code: int) -> None:
        if child.row is not None and self.board is not None:
            self.board.clear(child.row)
        coming = self._next.places if self._next is not None else []
        place = next((place for place in (*self.generation.places, *coming) if place.pid == child.pid), None)
        if self._next is not None and child.generation == self._next.number and not child.stopping:
            self._refuse_next(
                [f"a listener of the new configuration ended with code {code}; see its log lines"]
            )
            return
        if child.role == "retain" and not any(one.role == "retain" for one in self.generation.places):
            # Its last word, that the store is full, would stand for ever: nobody looks any more.
            with contextlib.suppress(OSError):
                store_capacity.write_store_full(self.config.run_dir, "")
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

    def _watch_folder(self) -> None:
        """End at once where the data folder was moved away, removed, or replaced by another.

        Its locks exclude nobody then, and what has files open would write to another folder than what opens
        new ones. Whatever was acknowledged lies in the folder that was there.
        """
        found, was = _stat_of(self.config.run_dir), self._folder
        if was is None or (found is not None and os.path.samestat(found, was)):
            self._folder_missed = 0
            return
        self._folder_missed += 1
        if self._folder_missed < FOLDER_MISSED:
            return
        log.error(
            "data_dir_replaced",
            data_dir=str(self.config.data_dir),
            cause="its run folder is gone" if found is None else "its run folder is another one by now",
            remedy="put the folder back that this node was started with, then start it again",
        )
        self.exit_code = REPLACED_EXIT
        self._handle_term()
        self._drain_until = 0.0

    def _watch_disk(self) -> None:
        """Receive nothing on a full disk: what room is left there is for the ledger, which frees the rest."""
        was_short = self._was_short
        self._reserve.look()
        short = self._was_short = self._reserve.is_short
        if self.board is not None:
            self.board.hold(held=short)
        if short == was_short:
            return
        if short:
            remedy = "make room; meanwhile nothing is received, and forwarding and retention go on"
            raise_alarm(
                self.config.run_dir, DISK_FULL, self._reserve.reason, remedy, severity=Severity.FAILING
            )
        else:
            clear_alarm(self.config.run_dir, DISK_FULL)
        if self.queue is not None:
            self.queue.keep_log(wanted=not short)

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
            if child.row is not None and monotonic_ms() - self.board.get(child.row, HEARTBEAT) > STUCK_MS:
                log.error("listener_stuck", child_pid=child.pid, silent_ms=STUCK_MS)
                self.board.set(child.row, HEARTBEAT, monotonic_ms())
                os.kill(child.pid, signal.SIGKILL if child.stuck else signal.SIGABRT)
                child.stuck = True

    # --- signals

    def _handle_term(self) -> None:
        self._next = None
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
        """Read the configuration again; it is in force once its listeners accept."""
        if self._drain_until is not None:
            return
        # Up to the end of the reload each file is read once: what was looked at is what is taken.
        self._reading.enter_context(cache_file_reads())
        self._begin_reload()
        if self._next is None:
            self._reading.close()

    def _begin_reload(self) -> None:
        """Read the new configuration, and have its listeners started beside those that accept now."""
        self._next_began = time.monotonic_ns()
        try:
            self._next = self._next_generation()
        except Exception as error:
            faults = list(error.faults) if isinstance(error, ConfigError) else [str(error)]
            # Whatever it is, a defect of ours as well: what runs must not end with it.
            self._say_refused(faults, None if isinstance(error, ConfigError | BootError) else error)
            return
        now = time.monotonic()
        self._next_deadline = now + RELOAD_SECONDS
        self._end_oldest(keep=OLD_GENERATIONS)
        self._go_on_reloading(now)

    def _go_on_reloading(self, now: float) -> None:
        """Start the listeners of the next configuration; put it in force once all of them accept.

        Until then the old ones accept: a configuration whose listeners do not come up changes nothing.
        """
        coming = self._next
        if coming is None:
            return
        if self.board is not None:
            wanted = sum(place.role == "listen" and not place.pid for place in coming.places)
            if wanted > self.board.free_rows():
                self._end_oldest(keep=0)
        self._fill(coming, now, frozenset({"listen"}))
        if self._all_accept(coming):
            self._put_in_force(coming)
        elif now > self._next_deadline:
            self._refuse_next([f"its listeners do not accept within {RELOAD_SECONDS:.0f} s"])

    def _put_in_force(self, new: Generation) -> None:
        old, self.generation, self._next = self.generation, new, None
        now = time.monotonic()
        for child in self.children.values():
            # One that is ending already would take a second signal for more haste.
            if child.generation != new.number and not child.stopping:
                child.stopping, child.retired_at = True, now
                os.kill(child.pid, signal.SIGHUP if child.role == "listen" else signal.SIGTERM)
        unbind(old.endpoints, keep=new.endpoints)
        self._tell_of_files()
        self._reading.close()
        log.info("reloaded", generation=new.number)
        reload_client.note(self.config.run_dir, new.number, began=self._next_began)

    def _refuse_next(self, faults: list[str]) -> None:
        """Go on with the configuration in force, since the listeners of the next one do not come up."""
        coming, self._next = self._next, None
        self._reading.close()
        if coming is None:
            return
        for child in self.children.values():
            if child.generation == coming.number and not child.stopping:
                child.stopping = True
                os.kill(child.pid, signal.SIGTERM)  # those that came up may have taken associations
        unbind(coming.endpoints, keep=self.generation.endpoints)
        with contextlib.suppress(BootError):
            configure_log(self.config.log)
        self._say_refused(faults, None)

    def _say_refused(self, faults: list[str], unforeseen: Exception | None) -> None:
        log.error(
            "reload_refused", faults=faults, in_force="the configuration read before", exc_info=unforeseen
        )
        reload_client.note(self.config.run_dir, self.generation.number, faults, began=self._next_began)

    def _end_old_generations(self, now: float) -> None:
        """End the listeners whose configuration was replaced longer ago than `reload_drain_seconds`."""
        for child in self.children.values():
            late = (
                child.retired_at is not None
                and now - child.retired_at > self.config.node.reload_drain_seconds
            )
            if late and child.role == "listen":
                self._end_listener(child)

    def _end_oldest(self, keep: int) -> None:
        """End the listeners of all retired generations but the newest `keep`."""
        retired = {child.generation for child in self.children.values() if child.retired_at is not None}
        ending = sorted(retired)[: max(len(retired) - keep, 0)]
        for child in self.children.values():
            if child.generation in ending and child.role == "listen":
                self._end_listener(child)

    def _end_listener(self, child: Child) -> None:
        """Have a retired listener abort its associations and end; kill it where it does not."""
        now = time.monotonic()
        if child.ended_at is None:
            child.ended_at = now
            log.warning("old_listener_ended", child_pid=child.pid, generation=child.generation)
            os.kill(child.pid, signal.SIGUSR2)
        elif now - child.ended_at > GRACE_SECONDS:
            os.kill(child.pid, signal.SIGKILL)

    def _tell_of_files(self) -> None:
        """Of what the configuration names: what others should know now, and what ends later."""
        try:
            for notice in [*read_notes(self.path), *notices(self.config)]:
                log.warning("notice", key=notice.key, cause=notice.cause, remedy=notice.remedy)
            self._certificates.watch_configuration(self.config)
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


def _stat_of(path: Path) -> os.stat_result | None:
    """The folder there; None where there is none.

    Raises:
        OSError: That cannot be told; the disk is failing.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
