"""The supervisor: starts the processes of a node, watches them, and stops them. It serves nothing itself.

Before the first fork it reads the configuration, builds TLS contexts, binds listening sockets and creates the
scoreboard, because children inherit these. It starts no thread, no event loop and no client of Redis or SQL,
because none of these survives a fork. Signal handlers only queue. Each turn of the loop handles the queued
signals, reaps children that ended, and then does its duties.
"""

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from ingest.acceptor import listener
from ingest.acceptor.scoreboard import Scoreboard
from ingest.alarms import Severity, clear_alarm, raise_alarm
from ingest.audit import record_application
from ingest.checks import file_systems
from ingest.checks.versions import require_versions
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.cores import read_cores
from ingest.errors import BootError, IngestError
from ingest.filesystem.calls import TRANSIENT_ERRNOS
from ingest.filesystem.data_format import write_data_format
from ingest.filesystem.node_lock import share_workers_lock, take_node_lock
from ingest.log import RateLimitedLog, configure_logging, reopen_log
from ingest.metrics.board import (
    GENERATION,
    PID,
    READY,
    STARTED_AT,
    STARTING,
    STATE,
    STOPPING,
    MetricsBoard,
    use_board,
)
from ingest.metrics.board_file import BoardFile
from ingest.metrics.families import PROCESS_DEATHS, PROCESSES, PROCESSES_WANTED, ROLE
from ingest.process import disable_core_dumps
from ingest.spool import store_capacity
from ingest.supervisor.child import BOOT_EXIT
from ingest.supervisor.children import GRACE_SECONDS, ChildProcess, Children
from ingest.supervisor.console_watch import ROLE as CONSOLE
from ingest.supervisor.console_watch import ConsoleWatch
from ingest.supervisor.disk_reserve import DiskReserve
from ingest.supervisor.embedded_queue import SHUTDOWN_SECONDS, EmbeddedQueue
from ingest.supervisor.generation import ALL_ROLES, Generation, WorkerSlot
from ingest.supervisor.process_meter import ProcessMeter
from ingest.supervisor.reload import Generations
from ingest.supervisor.service_manager import ServiceManager
from ingest.supervisor.signals import SignalQueue

WORKERS: Final = {
    "persist": "ingest.workers.persist.worker:main",
    "forward": "ingest.workers.forward.worker:main",
    "retain": "ingest.workers.retention.remover:main",
    "monitor": "ingest.workers.monitor.worker:main",
    "console": "ingest.console.server:main",
}
"""Entry points by role, as text: imports run from `workers` and the console to the supervisor, never back."""

PROBE_SECONDS: Final = 10.0
"""Time for the probes of the node's file systems at the start."""

DISK_FULL: Final = "disk_full"
"""Name of the alarm for a full disk of the data folder."""

TICK_SECONDS: Final = 0.5
PUBLISH_SECONDS: Final = 0.9
"""Pause between two copies of the metrics board to its file: every second turn."""

MEASURE_SECONDS: Final = 5.0
"""Pause between two measurements of CPU time and memory."""

BUSY_TICK_SECONDS: Final = 0.02
"""Pause between two turns during a start or a reload, when the supervisor waits for its listeners."""

CONSOLE_WAITS_SECONDS: Final = 10.0
"""Time that the console waits for the listeners at a start, so that its imports do not delay them."""

UNREADABLE_AFTER: Final = 3
"""Deaths of the embedded queue in a row after which its files are probably unreadable."""

END_SECONDS: Final = 4 * GRACE_SECONDS + SHUTDOWN_SECONDS
"""Longest time between the end of a drain and the end of the node: workers, console and embedded queue."""

FOLDER_MISSED: Final = 2
"""Looks in a row that find no data folder, or another one, before the node ends."""

REPLACED_EXIT: Final = 1
"""Exit code of a node whose data folder was replaced while it ran."""

log = structlog.get_logger()


def run_supervisor(path: Path, roles: frozenset[str]) -> int:
    """Run the given roles of a node until it is stopped; return the exit code.

    Raises:
        ConfigError: The configuration cannot be used.
        BootError: A port, folder or key cannot be used.
    """
    # Ledger, log and spool contain data of patients. No other user may read what the node creates.
    os.umask(os.umask(0o077) | 0o027)
    disable_core_dumps()
    config = load_config(path, roles=roles)
    configure_logging(config.log.level, config.log.format, config.log.file)
    return Supervisor(path, config, roles).run()


class Supervisor:
    """The parent process of one node."""

    def __init__(self, path: Path, config: Config, roles: frozenset[str]) -> None:
        """Prepare. `run` starts the node."""
        self._roles = roles
        self._children = Children(self._run_child)
        self._generations = Generations(path, config, roles, self._children)
        self._path = path
        self._console = ConsoleWatch(config.run_dir)
        self._started_at = time.monotonic()
        self._signals = SignalQueue()
        self._queue: EmbeddedQueue | None = None
        self._queue_slot = WorkerSlot("queue")
        self._reserve = DiskReserve(config.data_dir, config.run_dir / "reserve")
        self._was_disk_full: bool | None = None
        self._log = RateLimitedLog()
        self._lock: int | None = None
        self._folder: os.stat_result | None = None
        self._folder_missed = 0
        self._is_ready = False
        self._is_start_recorded = False
        self._drain_until: float | None = None
        self._exit_code = 0
        self._metrics = MetricsBoard.create()
        use_board(self._metrics)
        self._meter = ProcessMeter(self._metrics)
        self._metrics_file: BoardFile | None = None
        self._publish_at = self._measure_at = 0.0
        self._manager = ServiceManager()
        self._is_reloading = False

    @property
    def _config(self) -> Config:
        return self._generations.config

    def run(self) -> int:
        """Start the node, watch it until it is stopped, and return the exit code."""
        self._prepare_folders()
        self._require_file_systems()
        self._signals.catch()
        try:
            self._start()
            while not self._is_finished():
                is_waiting = not self._is_ready or self._generations.coming is not None
                self._signals.wait(BUSY_TICK_SECONDS if is_waiting else TICK_SECONDS)
                self._run_turn()
        finally:
            self._children.kill_all()
            if self._queue is not None:
                self._queue.stop()
        log.info("stopped", exit_code=self._exit_code)
        return self._exit_code

    def _run_turn(self) -> None:
        for number in self._signals.take(keep_reload=self._generations.coming is not None):
            if number != signal.SIGCHLD:
                log.info("signal", signal=number.name)
                self._handle_signal(number)
        for child, code, use in self._children.reap():
            self._meter.record_end(child.pid, child.role, use)
            self._handle_child_end(child, code)
        self._do_duties()

    def _handle_signal(self, number: signal.Signals) -> None:
        if number in {signal.SIGTERM, signal.SIGINT}:
            self._stop()
        elif number == signal.SIGHUP and self._drain_until is None:
            self._manager.report_reloading()
            self._is_reloading = True
            self._generations.begin_reload()
        elif number == signal.SIGUSR1:
            reopen_log()
            self._children.signal_all(signal.SIGUSR1)

    # --- start

    def _prepare_folders(self) -> None:
        config = self._config
        try:
            require_versions(config, self._roles)
            # Examine the reserve next: on a full disk, giving it up makes room for what follows.
            self._reserve.update()
            for folder in (config.data_dir, config.run_dir):
                folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._folder = os.stat(config.run_dir)
            self._reserve.update(at_once=True)
            if "listen" in self._roles:
                self._lock = take_node_lock(config.run_dir)
                self._children.board = Scoreboard.create(config.run_dir / "scoreboard")
            else:
                self._lock = share_workers_lock(config.run_dir)
            self._write_data_format()
            self._begin_metrics()
        except OSError as error:
            cause = f"[node] data_dir: {error.filename or config.run_dir} cannot be used: {error.strerror}"
            if error.errno in TRANSIENT_ERRNOS:
                raise IngestError(f"{cause}; make room, or see to the disk") from error
            raise BootError(cause) from error

    def _write_data_format(self) -> None:
        """Write the version into the data folder. On a full or failing disk the next start tries again."""
        try:
            write_data_format(self._config.data_dir)
        except OSError as error:
            if error.errno not in TRANSIENT_ERRNOS:
                raise

    def _begin_metrics(self) -> None:
        name = "node" if "listen" in self._roles else "-".join(sorted(self._roles))
        self._metrics_file = BoardFile(self._metrics, self._config.run_dir, name)
        words = self._metrics.words
        words[PID], words[STARTED_AT], words[STATE] = os.getpid(), unix_ms(), STARTING
        self._publish_metrics(at_once=True)

    def _require_file_systems(self) -> None:
        """Refuse to start on a file system that could lose an acknowledged instance.

        Raises:
            BootError: A file system lacks a call that has no safe fall-back.
        """
        found = file_systems.check_file_systems_within(self._config, self._roles, PROBE_SECONDS)
        for fault in found:
            if fault.is_note:
                log.warning("notice", key=fault.key, cause=fault.cause, remedy=fault.remedy)
        serious = [str(fault) for fault in found if not fault.is_note]
        if serious:
            raise BootError("\n".join(serious))

    def _start(self) -> None:
        self._generations.start()
        if "listen" in self._roles:
            self._log_planned_listeners()
        if self._roles == ALL_ROLES and not self._config.queue.url:
            self._queue = EmbeddedQueue(self._config.data_dir)
            self._queue.start()
        self._do_duties()

    def _log_planned_listeners(self) -> None:
        """Say how many listeners there will be, and what `[receive] processes = 0` went by."""
        slots = self._generations.current.slots
        cores = read_cores()
        log.info(
            "listeners_planned",
            listeners=sum(slot.role == "listen" for slot in slots),
            processes=self._config.receive.processes,
            usable_cores=cores.usable,
            affinity=cores.allowed,
            quota=cores.quota,
        )

    def _print_ready(self) -> None:
        """Print a line on standard output for people and scripts that wait for the start."""
        listening = [str(endpoint) for endpoint in self._generations.current.endpoints]
        log.info("ready", listening=listening)
        # The reader of standard output may have closed it or ended. The node runs on.
        if sys.stdout is not None:
            with contextlib.suppress(OSError):
                os.write(sys.stdout.fileno(), " ".join(["ready", *listening]).encode() + b"\n")

    # --- duties of each turn

    def _do_duties(self) -> None:
        now = time.monotonic()
        try:
            self._publish_metrics(now)
        except Exception as error:  # metrics must not end the node
            self._log.warning("metrics_failed", exc_info=error)
        if self._drain_until is not None:
            self._continue_drain(now, self._drain_until)
            self._manager.beat(now)
            return
        self._children.fork_missing(self._generations.current, now, self._choose_roles_to_fork(now))
        self._generations.advance_reload(now)
        self._generations.end_expired_generations(now)
        for duty in (
            self._stop_if_data_folder_is_replaced,
            self._pause_receiving_while_disk_is_full,
            partial(self._restart_queue_if_dead, now),
            self._children.abort_stuck_listeners,
            partial(self._watch_console, now),
            self._generations.report_expiry,
        ):
            try:
                duty()
            except Exception as error:  # the next turn tries this duty again
                self._log.warning("watch_failed", exc_info=error)
        if not self._is_ready and self._children.are_listeners_accepting(self._generations.current):
            self._is_ready = True
            self._set_state(READY)
            self._print_ready()
            self._manager.report_ready(self._describe_state())
            self._is_start_recorded = True
            self._record_application(started=True)
        elif self._is_reloading and self._generations.coming is None:
            self._is_reloading = False
            self._manager.report_ready(self._describe_state())
        self._tell_manager(now)

    def _tell_manager(self, now: float) -> None:
        """Report to the service manager the state of the node, and that it lives.

        The watchdog must not end a node whose loop turns and whose listeners serve. A listener that hangs is
        replaced by `Children.abort_stuck_listeners`; the watchdog helps if that does not.
        """
        if self._is_ready:
            self._manager.report_status(self._describe_state())
        if not self._is_ready or self._children.is_any_listener_alive():
            self._manager.beat(now)

    def _describe_state(self) -> str:
        counts = Counter(child.role for child in self._children if not child.is_stopping)
        processes = ", ".join(f"{counts[role]} {role}" for role in ROLE.values if counts[role])
        return f"configuration {self._generations.current.number}; processes: {processes}"

    def _set_state(self, state: int) -> None:
        """Let readers of the metrics know at once that the node is ready, or ends."""
        self._metrics.words[STATE] = state
        self._publish_metrics(at_once=True)

    def _publish_metrics(self, now: float = 0.0, *, at_once: bool = False) -> None:
        """Write the metrics board for other processes, once a second; measure our processes now and then."""
        if self._metrics_file is None or (now < self._publish_at and not at_once):
            return
        self._publish_at = time.monotonic() + PUBLISH_SECONDS
        generation = self._generations.current
        self._metrics.words[GENERATION] = generation.number
        running = {os.getpid(): "supervisor", **{child.pid: child.role for child in self._children}}
        if self._queue is not None and self._queue.process is not None and self._queue.process.poll() is None:
            running[self._queue.process.pid] = "queue"
        counts, wanted = Counter(running.values()), Counter(slot.role for slot in generation.slots)
        wanted["supervisor"], wanted["queue"] = 1, int(self._queue is not None)
        for role in ROLE.values:
            self._metrics.set(PROCESSES, counts[role], role)
            self._metrics.set(PROCESSES_WANTED, wanted[role], role)
        if time.monotonic() >= self._measure_at:
            self._measure_at = time.monotonic() + MEASURE_SECONDS
            self._meter.measure(running)
        self._metrics_file.write()

    def _choose_roles_to_fork(self, now: float) -> frozenset[str]:
        """Leave the console for last: it must not delay the start of the listeners."""
        if self._is_ready or now - self._started_at > CONSOLE_WAITS_SECONDS:
            return self._roles
        return self._roles - {CONSOLE}

    def _watch_console(self, now: float) -> None:
        if CONSOLE in self._roles:
            is_wanted = any(slot.role == CONSOLE for slot in self._generations.current.slots)
            self._console.watch(self._children, now, is_wanted=is_wanted)

    def _stop_if_data_folder_is_replaced(self) -> None:
        """End the node at once if its data folder was moved, removed or replaced.

        Its locks would exclude no process any more. Open files would still be in the old folder, and new
        files would be created in another one. Acknowledged instances are in the old folder.
        """
        found, expected = _stat_folder(self._config.run_dir), self._folder
        if expected is None or (found is not None and os.path.samestat(found, expected)):
            self._folder_missed = 0
            return
        self._folder_missed += 1
        if self._folder_missed < FOLDER_MISSED:
            return
        log.error(
            "data_dir_replaced",
            data_dir=str(self._config.data_dir),
            cause="its run folder is gone" if found is None else "its run folder is another one by now",
            remedy="put the folder back that this node was started with, then start it again",
        )
        self._exit_code = REPLACED_EXIT
        self._stop()
        self._drain_until = 0.0

    def _pause_receiving_while_disk_is_full(self) -> None:
        """Let listeners receive nothing while the disk of the data folder is full.

        The room that is left belongs to the ledger, because forwarding and retention free the disk.
        """
        was_full = self._was_disk_full
        self._reserve.update()
        is_full = self._was_disk_full = self._reserve.is_given_up
        if self._children.board is not None:
            self._children.board.set_receiving_paused(paused=is_full)
        if is_full == was_full:
            return
        run_dir = self._config.run_dir
        if is_full:
            remedy = "make room; meanwhile nothing is received, and forwarding and retention go on"
            raise_alarm(run_dir, DISK_FULL, self._reserve.reason, remedy, severity=Severity.FAILING)
        else:
            clear_alarm(run_dir, DISK_FULL)
        if self._queue is not None:
            self._queue.set_persistence(wanted=not is_full)

    def _restart_queue_if_dead(self, now: float) -> None:
        queue, slot = self._queue, self._queue_slot
        if queue is None or queue.process is None or queue.process.poll() is None or now < slot.fork_at:
            return
        log.error("embedded_queue_died", code=queue.process.returncode)
        slot.record_death(now - slot.fork_at, now)
        if slot.failures > UNREADABLE_AFTER:
            log.error("embedded_queue_set_aside", remedy="nothing is lost: spool and ledger fill a new one")
            queue.set_files_aside()
            slot.failures = 0
        try:
            queue.start()
        except BootError as error:
            log.error("embedded_queue_does_not_start", error=str(error))

    # --- children

    def _run_child(self, generation: Generation, role: str, row: int | None) -> int:
        """Do the work of a role. This is the body of a child."""
        board, config = self._children.board, generation.config
        endpoints, remotes = self._generations.release_unneeded(generation, role)
        if self._metrics_file is not None:
            self._metrics_file.close()
        for fd in (self._lock, *self._signals.descriptors):
            if fd is not None:
                os.close(fd)
        if row is not None and board is not None:
            return listener.run_listener(config, endpoints, board, row)
        module, _, name = WORKERS[role].partition(":")
        main: Callable[..., int] = getattr(importlib.import_module(module), name)
        if role == "forward":
            return main(config, threading.Event(), remotes, generation.plans)
        if role == CONSOLE:
            return main(config, threading.Event(), self._path, self._console.link)
        return main(config, threading.Event())

    def _handle_child_end(self, child: ChildProcess, code: int) -> None:
        if child.role == CONSOLE and not child.is_stopping:
            self._console.forget_process(time.monotonic())
        slot = self._generations.find_slot(child.pid)
        coming = self._generations.coming
        if coming is not None and child.generation == coming.number and not child.is_stopping:
            self._generations.refuse_reload(
                [f"a listener of the new configuration ended with code {code}; see its log lines"]
            )
            return
        if child.role == "retain" and not any(
            each.role == "retain" for each in self._generations.current.slots
        ):
            # The new configuration has no remover. Its last report, that the store is full, would never
            # be withdrawn, so withdraw it here.
            with contextlib.suppress(OSError):
                store_capacity.write_store_full(self._config.run_dir, "")
        if slot is None or child.is_stopping:
            log.info("child_ended", child=child.role, child_pid=child.pid, code=code)
            return
        # INVARIANT 8: only a wrong configuration stops the node
        is_needed = child.role != CONSOLE
        if code == BOOT_EXIT and is_needed and not self._is_ready and self._drain_until is None:
            log.error("node_cannot_start", child=child.role)
            self._exit_code = BOOT_EXIT
            slot.pid = 0
            self._stop()
            return
        now = time.monotonic()
        pause = slot.record_death(now - child.started_at, now)
        # Code 0 means that another process asked the worker to end, such as a terminal that signals a group.
        self._metrics.add(PROCESS_DEATHS, child.role)
        write = log.info if code == 0 else log.error
        write("child_died", child=child.role, child_pid=child.pid, code=code, again_in_seconds=pause)

    # --- the end

    def _stop(self) -> None:
        """Begin to drain; at a second signal, stop at once."""
        self._generations.cancel_reload()
        if self._drain_until is not None:
            log.warning("stopping_at_once")
            self._drain_until = 0.0
            return
        self._set_state(STOPPING)
        drain_seconds = self._config.node.drain_seconds
        self._manager.report_stopping("lets associations end", drain_seconds + END_SECONDS)
        self._drain_until = time.monotonic() + drain_seconds
        self._console.link.set_draining()
        self._children.stop_role("listen")
        if "listen" not in self._roles:
            self._stop_workers()

    def _record_application(self, *, started: bool) -> None:
        """Record start or stop for the audit trail. A defect there costs the record, and never the node."""
        try:
            record_application(self._config, started=started)
        except Exception as error:
            self._log.warning("audit_message_dropped", exc_info=error)

    def _stop_workers(self) -> None:
        if self._is_start_recorded:
            # The monitor may still send the message, because it is asked to end only afterwards.
            self._is_start_recorded = False
            self._record_application(started=False)
        for role in WORKERS:
            if role != CONSOLE:
                self._children.stop_role(role)

    def _continue_drain(self, now: float, until: float) -> None:
        """Wait for the listeners, then stop the workers, and the console last.

        The console says meanwhile that the node is not ready. Every child that is left at the deadline is
        killed.
        """
        is_listening = any(child.role == "listen" for child in self._children)
        others = [child for child in self._children if child.role != CONSOLE]
        if not is_listening and not all(child.is_stopping for child in others):
            self._stop_workers()
            self._drain_until = max(until, now + GRACE_SECONDS) if until else until
        if not others and not all(child.is_stopping for child in self._children):
            self._children.stop_role(CONSOLE)
            self._drain_until = now + GRACE_SECONDS if until else until
        if now > until + (GRACE_SECONDS if until else 0.0):
            self._children.kill_all()

    def _is_finished(self) -> bool:
        return self._drain_until is not None and not len(self._children)


def _stat_folder(path: Path) -> os.stat_result | None:
    """Return the status of a folder; None if it does not exist.

    Raises:
        OSError: The disk fails.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
