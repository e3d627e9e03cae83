"""Long jobs on ledger and store. One runs at a time, in a thread of its own."""

import importlib
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from ingest.audit.recorder import Action
from ingest.console.api import models, request_models
from ingest.console.api.actions import ACTION_SECONDS, record_action
from ingest.console.api.operation import Call, Operation
from ingest.console.problems import ProblemError
from ingest.errors import IngestError
from ingest.threads import start_task

REBUILD: Final = "ingest.workers.ledger_rebuild"
REINDEX: Final = "ingest.workers.study_reindex"
RETENTION: Final = "ingest.workers.retention.command"
"""Named as text: the console does not import workers."""

PLANNED_MAX: Final = 1000
"""Studies of a plan that one answer lists."""


@dataclass(slots=True)
class _Job:
    kind: str = ""
    state: Literal["none", "running", "done", "failed"] = "none"
    progress: str = ""
    error: str = ""
    result: dict[str, Any] | None = None


class LedgerJobs:
    """The job that runs, or the last one. It ends with the console; its repetition does what is left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._job = _Job()

    def start(self, call: Call, body: request_models.Job) -> None:
        """Start a job.

        Raises:
            ProblemError: One runs.
        """
        with self._lock:
            if self._job.state == "running":
                raise ProblemError(409, f"{self._job.kind} runs already", "wait until it has ended")
            job = self._job = _Job(body.kind, "running")
        start_task("ledger-job", lambda: self._run(call, body, job))

    def _run(self, call: Call, body: request_models.Job, job: _Job) -> None:
        def report_progress(text: str) -> None:
            job.progress = text

        try:
            job.result = _do_job(call, body, report_progress)
            job.state = "done"
        except (IngestError, OSError) as error:
            job.error, job.state = str(error), "failed"
        finally:
            if job.state == "running":
                job.error, job.state = "a defect of the console; see its log", "failed"

    def describe(self) -> dict[str, Any]:
        """Return the state for JSON."""
        job = self._job
        return {
            "kind": job.kind,
            "state": job.state,
            "progress": job.progress,
            "error": job.error,
            "result": job.result,
        }


def _do_job(call: Call, body: request_models.Job, report_progress: Callable[[str], None]) -> dict[str, Any]:
    if body.kind == "reindex":
        reindex = importlib.import_module(REINDEX).reindex_studies
        return asdict(reindex(call.config, report_progress))
    module = importlib.import_module(RETENTION if body.kind == "retention" else REBUILD)
    result: Any
    if body.kind == "retention":
        result = module.run_retention(call.config, accept_clock=body.accept_clock)
    elif body.kind == "rebuild":
        result = module.rebuild_ledger(
            call.config, makes_deliveries=body.deliveries, report_progress=report_progress
        )
    else:
        result = module.verify_ledger(
            call.config, reads=body.kind == "verify-files", report_progress=report_progress
        )
    found: dict[str, Any] = result.to_json()
    return found


_jobs: Final = LedgerJobs()
"""The jobs belong to the process, as the ledger's one lock does."""


def start_job(call: Call) -> dict[str, Any]:
    """Start a job on the ledger."""
    body: request_models.Job = call.body
    _jobs.start(call, body)
    record_action(call, Action.OTHER, f"ledger/{body.kind}")
    return _jobs.describe()


def show_job(_call: Call) -> dict[str, Any]:
    """Show the job on the ledger."""
    return _jobs.describe()


def plan_retention(call: Call) -> dict[str, Any]:
    """List what a retention run would remove."""
    plan: dict[str, Any] = importlib.import_module(RETENTION).plan_retention(call.config).to_json()
    counts = {f"{name}_count": len(plan[name]) for name in ("go", "held")}
    return {**plan, **counts, **{name: plan[name][:PLANNED_MAX] for name in ("go", "held")}}


OPERATIONS: Final = (
    Operation(
        "GET",
        "/retention",
        "List what a retention run would remove, and what it would keep for a destination",
        plan_retention,
        models.RetentionPlan,
        tag="ledger",
        seconds=ACTION_SECONDS,
    ),
    Operation(
        "POST",
        "/ledger/jobs",
        "Compare ledger and store, create missing rows, or apply the retention policy once",
        start_job,
        models.JobState,
        body=request_models.Job,
        tag="ledger",
    ),
    Operation("GET", "/ledger/jobs", "Show the last job", show_job, models.JobState, tag="ledger"),
)
