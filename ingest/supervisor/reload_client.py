"""`ingest reload`: have a running node read its configuration again, and tell what came of it."""

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ingest.config.model import Config
from ingest.errors import ConfigError, IngestError

OUTCOME: Final = "reload.json"
WORKERS_LOCK: Final = "workers.lock"
"""In the run folder: each supervisor of workers alone holds a shared record lock (fcntl) on it."""
WAIT_SECONDS: Final = 90.0
"""Longer than the supervisor waits for the listeners of a new configuration."""
_POLL_SECONDS: Final = 0.05


def note(run_dir: Path, generation: int, faults: Sequence[str] = (), *, began: int) -> None:
    """Leave word, for who asked, of how a reading of the configuration ended.

    Args:
        run_dir: Of the node.
        generation: Number of the configuration in force.
        faults: Why the new one is not; empty where it is.
        began: When the reading began, in nanoseconds of the machine's monotonic clock.
    """
    path = run_dir / OUTCOME
    new = path.with_suffix(".new")
    # Whoever waits for it gives up by itself: no reason for a node to stop.
    with contextlib.suppress(OSError):
        said = {"began": began, "pid": os.getpid(), "generation": generation, "faults": list(faults)}
        new.write_text(json.dumps(said))
        new.replace(path)


def reload(config: Config, seconds: float = WAIT_SECONDS) -> int:
    """Signal the node with this data folder, and wait for its answer; returns the generation in force.

    Raises:
        ConfigError: The node refuses the new configuration, and goes on with the old one.
        IngestError: No node runs there, it belongs to somebody else, or it does not answer.
    """
    pid = _running(config.run_dir)
    asked = time.monotonic_ns()
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise IngestError(f"process {pid} belongs to another user; reload as the user of the node") from None
    except ProcessLookupError:
        raise _not_running(config.run_dir) from None
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = outcome(config.run_dir)
        # One that began before is the answer to somebody else, and may have read older files.
        if now.get("began", 0) > asked and now.get("pid") == pid:
            if now["faults"]:
                raise ConfigError(now["faults"])
            return int(now["generation"])
        time.sleep(_POLL_SECONDS)
    raise IngestError(f"process {pid} has not answered within {seconds:.0f} s; look into its log")


def _running(run_dir: Path) -> int:
    path, kind = run_dir / "node.lock", fcntl.LOCK_EX
    try:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            # A monitoring account may read it: the node's lock keeps a shared one out as well.
            fd, kind = os.open(path, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH
    except FileNotFoundError:
        raise _not_running(run_dir) from None
    except OSError as error:
        raise IngestError(f"{path}: {error.strerror}; reload as the user of the node") from None
    try:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(fd, kind | fcntl.LOCK_NB)
            raise _not_running(run_dir)
        return int(os.read(fd, 32))
    except ValueError:
        raise _not_running(run_dir) from None
    finally:
        os.close(fd)


def is_running(run_dir: Path) -> bool:
    """Whether a node with listeners runs on this folder, as far as this user can tell."""
    try:
        return bool(_running(run_dir))
    except IngestError:
        return False


def workers_run(run_dir: Path) -> bool:
    """Whether workers without listeners run on this folder, on this host."""
    try:
        fd = os.open(run_dir / WORKERS_LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _not_running(run_dir: Path) -> IngestError:
    return IngestError(f"no node with listeners runs on {run_dir.parent}; `ingest serve` starts one")


def outcome(run_dir: Path) -> dict[str, Any]:
    """How the last reading ended, as `note` left it: `began`, `pid`, `generation`, `faults`."""
    try:
        found = json.loads((run_dir / OUTCOME).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
