"""What the sender of audit messages did last, for `ingest audit status`: a small file beside the queue."""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(slots=True)
class SenderState:
    """The state of the sender.

    Attributes:
        sent: Messages that were sent since the node was set up.
        sent_at: When the repository last took messages, in Unix milliseconds; 0 if it never did.
        failing_since: Since when it takes none while messages wait; 0 while it takes them.
        error: Why it takes none; empty while it takes them.
    """

    sent: int = 0
    sent_at: int = 0
    failing_since: int = 0
    error: str = ""


def read_sender_state(folder: Path) -> SenderState:
    """Return the state; an empty one if there is none or it cannot be read."""
    try:
        values = json.loads((folder / "sender.json").read_bytes())
        return SenderState(
            int(values["sent"]), int(values["sent_at"]), int(values["failing_since"]), str(values["error"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return SenderState()


def write_sender_state(folder: Path, state: SenderState) -> None:
    """Replace the file. A full disk costs the state, never a message."""
    new = folder / f".sender.{os.getpid()}"
    with contextlib.suppress(OSError):
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump(asdict(state), file)
        new.rename(folder / "sender.json")
