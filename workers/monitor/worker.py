"""The monitor: one process at low priority that runs the periodic tasks of a node.

No task may touch reception. Each one reads the ledger, the run folder and the queue, and writes rows or
messages of its own. A task that fails is tried again after its period; the other tasks go on.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from ingest.audit import AuditTrail
from ingest.config.model import Config
from ingest.errors import BootError, IngestError, LedgerError
from ingest.ledger import Ledger
from ingest.ledger.announcements import build_announcer
from ingest.log import RateLimitedLog, describe_defect
from ingest.workers.host_recorder import HostRecorder
from ingest.workers.monitor.alerts import AlertTask, name_owner
from ingest.workers.monitor.audit_reporter import TransferReporter
from ingest.workers.monitor.audit_sender import AuditSender
from ingest.workers.monitor.commitment import CommitmentJudge
from ingest.workers.monitor.completion import CompletionJudge
from ingest.workers.monitor.sampling import PERIOD_SECONDS, Sampler
from ingest.workers.monitor.sender import EventSender

NICE: Final = 10
"""Added to the priority of the process: receiving and forwarding come first."""

_SLICE_SECONDS: Final = 0.2

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MonitorTask:
    """A function that the monitor calls again and again.

    Attributes:
        name: Name for the log.
        period_seconds: Time from the end of one call to the begin of the next.
        run: The function. It returns soon: its waits have deadlines of seconds.
        close: Called once at the end, likewise; None if there is nothing to do.
    """

    name: str
    period_seconds: float
    run: Callable[[], object]
    close: Callable[[], object] | None = None


def plan_tasks(config: Config, ledger: Ledger) -> list[MonitorTask]:
    """Return the tasks that this configuration asks for."""
    host = HostRecorder(config, ledger, "monitor")
    tasks = [MonitorTask("host", 1.0, host.record_if_due)]
    if config.takes_commitment_requests:
        tasks.append(MonitorTask("commitment", 1.0, CommitmentJudge(config, ledger).run))
    if config.judges_completion:
        tasks.append(MonitorTask("completion", 1.0, CompletionJudge(config, ledger).run))
    if (trail := AuditTrail.open(config)) is not None:
        reporter, sender = TransferReporter(config, ledger, trail), AuditSender(config, trail)
        tasks.append(MonitorTask("audit_report", 1.0, reporter.run, reporter.close))
        tasks.append(MonitorTask("audit_send", 0.5, sender.run, sender.close))
    if config.console is not None:
        tasks.append(MonitorTask("sampling", PERIOD_SECONDS, Sampler(config, ledger).take_sample))
    tasks += _plan_alerts(config, ledger)
    return tasks


def _plan_alerts(config: Config, ledger: Ledger) -> Iterator[MonitorTask]:
    if config.alerts or config.webhooks:
        owner = name_owner(config)
        sender = EventSender(config, ledger, owner)
        alerts = AlertTask(config, ledger, sender, owner)
        if config.alerts:
            yield MonitorTask("alerts", 2.0, alerts.run)
        yield MonitorTask("events", 1.0, alerts.send_due, alerts.close)


def run(config: Config, stop: threading.Event) -> None:
    """Run the tasks until `stop` is set. A task that has begun is finished first.

    Raises:
        BootError: The configuration cannot be used, or a newer program has migrated the ledger.
    """
    try:
        ledger = Ledger(config.ledger_url, announcer=build_announcer(config))
    except LedgerError as error:
        raise BootError(str(error)) from error
    failures = RateLimitedLog()
    with contextlib.closing(ledger):
        tasks = plan_tasks(config, ledger)
        due = {task.name: (0.0, task) for task in tasks}
        while not stop.is_set():
            for name, (due_at, task) in due.items():
                if stop.is_set() or time.monotonic() < due_at:
                    continue
                _run_task(task, failures)
                due[name] = time.monotonic() + task.period_seconds, task
            # A signal handler sets the event. If it interrupted `Event.wait`, `Event.set` would wait for the
            # lock that the interrupted call holds. Short sleeps hold no lock.
            time.sleep(_SLICE_SECONDS)
        for task in tasks:
            try:
                if task.close is not None:
                    task.close()
            except Exception as error:  # the other tasks end too
                failures.warning("monitor_task_failed", task=task.name, **describe_defect(error))


def _run_task(task: MonitorTask, failures: RateLimitedLog) -> None:
    try:
        task.run()
    except BootError:  # a newer program has migrated the ledger
        raise
    except IngestError as error:  # such as a ledger that is away: no defect, so no traceback
        failures.warning("monitor_task_failed", task=task.name, error=str(error))
    except Exception as error:  # INVARIANT 8: only a wrong configuration stops the node
        failures.warning("monitor_task_failed", task=task.name, **describe_defect(error))


def main(config: Config, stop: threading.Event) -> int:
    """Run the child process until SIGTERM or SIGINT, and return its exit code.

    Raises:
        BootError: The configuration cannot be used.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    os.nice(NICE)
    run(config, stop)
    return 0
