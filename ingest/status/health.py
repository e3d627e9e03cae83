"""Liveness and readiness of a node: for /live and /ready of the console, and `ingest check --ready`.

Both come from files in the run folder alone: the copies of metrics board and scoreboard. No answer waits for
a database, a queue or a disk that is away, because these do not keep a node from receiving.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ingest.acceptor.accept_gate import STALE_MS
from ingest.acceptor.scoreboard import ACCEPTING, Scoreboard
from ingest.clock import monotonic_ms
from ingest.filesystem import node_lock
from ingest.metrics.board import HEARTBEAT, READY, STARTING, STATE, MetricsBoard
from ingest.metrics.board_file import SILENT_MS, read_boards
from ingest.metrics.families import OTHER, PROCESSES, PROCESSES_WANTED, ROLE

DEAD_MS: Final = 60_000
"""A supervisor without a heartbeat for this long does not come back by itself."""


@dataclass(frozen=True, slots=True)
class RoleHealth:
    """The processes of one role.

    Attributes:
        running: Number of running processes.
        wanted: Number that the configuration asks for.
    """

    running: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Health:
    """The answer to one question.

    Attributes:
        is_ok: Whether the node lives, or is ready.
        reasons: Why not; each a sentence for a person.
        roles: Processes by role.
    """

    is_ok: bool
    reasons: tuple[str, ...] = ()
    roles: Mapping[str, RoleHealth] = field(default_factory=dict)

    def to_json(self, *, with_detail: bool = True) -> dict[str, Any]:
        """Return values for JSON. Without detail only the answer, for callers that did not log in."""
        if not with_detail:
            return {"ok": self.is_ok}
        roles = {name: asdict(role) for name, role in self.roles.items()}
        return {"ok": self.is_ok, "reasons": list(self.reasons), "roles": roles}


def check_liveness(run_dir: Path) -> Health:
    """Return whether the supervisor runs and its loop turns. If not, only a restart helps."""
    boards = read_boards(run_dir)
    if not boards:
        # On a full disk there is no copy of the board, but the lock needs no disk.
        is_running = node_lock.is_node_running(run_dir) or node_lock.are_workers_running(run_dir)
        return Health(is_running, () if is_running else (_describe_absence(run_dir),))
    silent = [name for name, board in boards.items() if _measure_silence_ms(board) > DEAD_MS]
    reasons = tuple(f"the supervisor ({name}) has shown no sign of life for a minute" for name in silent)
    return Health(not reasons, reasons, _count_processes(boards))


def check_readiness(run_dir: Path) -> Health:
    """Return whether the node receives; workers without listeners are ready once they have started."""
    boards = read_boards(run_dir)
    reasons = tuple(_find_obstacles(run_dir, boards))
    return Health(not reasons, reasons, _count_processes(boards))


def _find_obstacles(run_dir: Path, boards: Mapping[str, MetricsBoard]) -> Iterator[str]:
    if not boards:
        yield _describe_absence(run_dir)
        return
    # On a data folder with listeners these decide, regardless of the workers beside them.
    for name, board in boards.items() if "node" not in boards else [("node", boards["node"])]:
        state = board.words[STATE]
        if state != READY:
            yield "the node is starting" if state == STARTING else "the node is ending"
        elif _measure_silence_ms(board) > SILENT_MS:
            yield f"the supervisor ({name}) has shown no sign of life for {SILENT_MS // 1000} s"
        elif name == "node":
            yield from _find_receiving_obstacles(run_dir)


def _find_receiving_obstacles(run_dir: Path) -> Iterator[str]:
    board = Scoreboard.open_reader(run_dir / "scoreboard")
    rows = board.list_listeners() if board is not None else []
    accepting = [row for row in rows if row.state == ACCEPTING and abs(row.age_ms) <= STALE_MS]
    if not accepting:
        yield "no listener accepts associations; see `ingest status`"
    elif all(row.is_full for row in accepting):
        yield "the listeners refuse everything, because a disk is full or failing; see `ingest status`"


def _measure_silence_ms(board: MetricsBoard) -> int:
    # A restart of the machine sets the clock back, and leaves the file of the old supervisor.
    return abs(monotonic_ms() - board.words[HEARTBEAT])


def _describe_absence(run_dir: Path) -> str:
    return f"no node runs on {run_dir.parent}, or its run folder cannot be written"


def _count_processes(boards: Mapping[str, MetricsBoard]) -> dict[str, RoleHealth]:
    found = {}
    for role in ROLE.values:
        running, wanted = (
            sum(board.words[board.find_word(family, role)] for board in boards.values())
            for family in (PROCESSES, PROCESSES_WANTED)
        )
        if role != OTHER and (running or wanted):
            found[role] = RoleHealth(running, wanted)
    return found
