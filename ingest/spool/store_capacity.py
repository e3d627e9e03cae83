"""Word of whether the store has room, which the remover of a node leaves for its listeners.

For `[retention] at_max_bytes = "refuse"`. How much the store holds is asked of the ledger: by one process,
and not by those that receive. While the ledger is away, the last word holds.
"""

from pathlib import Path
from typing import Final

import structlog

WORD: Final = "store_full"

log = structlog.get_logger()


def leave_word(run_dir: Path, why: str) -> None:
    """Say why listeners are to take nothing more; empty where the store has room.

    Args:
        run_dir: Of the node.
        why: For logs and people.

    Raises:
        OSError: It cannot be written.
    """
    path = run_dir / WORD
    before = full(run_dir)
    if why == before:
        return
    if why:
        new = path.with_suffix(".new")
        new.write_text(why)
        new.replace(path)
    else:
        path.unlink(missing_ok=True)
    if bool(why) != bool(before):
        log.warning("store_full" if why else "store_has_room", reason=why)


def full(run_dir: Path) -> str:
    """Why the store takes nothing more, as the remover found last, or an empty string."""
    path = run_dir / WORD
    try:
        # After a power cut it may be empty: that it is there says enough.
        return path.read_text(errors="replace") or f"[retention] max_bytes is reached, says {path}"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
