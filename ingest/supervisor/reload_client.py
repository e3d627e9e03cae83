"""`ingest reload`: make a running node read its configuration again, and wait for the outcome."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ingest.config.model import Config
from ingest.errors import ConfigError, IngestError
from ingest.filesystem.node_lock import find_node_pid, no_node_error

OUTCOME: Final = "reload.json"
WAIT_SECONDS: Final = 90.0
"""Longer than `RELOAD_SECONDS`, the time that the listeners of a new generation have."""
_POLL_SECONDS: Final = 0.05


def write_outcome(run_dir: Path, generation: int, faults: Sequence[str] = (), *, began_ns: int) -> None:
    """Write how a reading of the configuration ended, for the process that asked for it.

    Args:
        run_dir: Run folder of the node.
        generation: Number of the generation in force.
        faults: Why the new configuration is not in force; empty if it is.
        began_ns: Begin of the reading, in nanoseconds of the machine's monotonic clock.
    """
    path = run_dir / OUTCOME
    new = path.with_suffix(".new")
    # A full disk must not stop the node. The process that waits for the file has its own deadline.
    with contextlib.suppress(OSError):
        content = {"began": began_ns, "pid": os.getpid(), "generation": generation, "faults": list(faults)}
        new.write_text(json.dumps(content))
        new.replace(path)


def request_reload(config: Config, seconds: float = WAIT_SECONDS) -> int:
    """Signal the node on this data folder, wait for its outcome, and return the generation in force.

    Raises:
        ConfigError: The node refuses the new configuration and continues with the old one.
        IngestError: No node runs there, it belongs to another user, or it does not answer.
    """
    pid = find_node_pid(config.run_dir)
    requested_ns = time.monotonic_ns()
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise IngestError(f"process {pid} belongs to another user; reload as the user of the node") from None
    except ProcessLookupError:
        raise no_node_error(config.run_dir) from None
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        outcome = read_outcome(config.run_dir)
        # A reading that began before our signal may have read older files. It answers another request.
        if outcome.get("began", 0) > requested_ns and outcome.get("pid") == pid:
            if outcome["faults"]:
                raise ConfigError(outcome["faults"])
            return int(outcome["generation"])
        time.sleep(_POLL_SECONDS)
    raise IngestError(f"process {pid} has not answered within {seconds:.0f} s; look into its log")


def read_outcome(run_dir: Path) -> dict[str, Any]:
    """Return the outcome of the last reading (`began`, `pid`, `generation`, `faults`); empty without one."""
    try:
        outcome = json.loads((run_dir / OUTCOME).read_text())
    except (OSError, ValueError):
        return {}
    return outcome if isinstance(outcome, dict) else {}
