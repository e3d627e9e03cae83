"""Store capacity: whether the store may take more, as the retention process last found.

This serves `[retention] at_max_bytes = "refuse"`. The retention process asks the ledger how much the store
holds and writes the result to a file for the listeners. Listeners therefore never ask the ledger. While the
ledger is away, the last result holds.
"""

from pathlib import Path
from typing import Final

import structlog

FILE_NAME: Final = "store_full"

log = structlog.get_logger()


def write_store_full(run_dir: Path, reason: str) -> None:
    """Write why listeners must refuse instances; an empty reason means that the store may take more.

    Args:
        run_dir: The run folder of the node.
        reason: For logs and people.

    Raises:
        OSError: The file cannot be written.
    """
    path = run_dir / FILE_NAME
    before = read_store_full(run_dir)
    if reason == before:
        return
    if reason:
        new = path.with_suffix(".new")
        new.write_text(reason)
        new.replace(path)
    else:
        path.unlink(missing_ok=True)
    if bool(reason) != bool(before):
        log.warning("store_full" if reason else "store_has_room", reason=reason)


def read_store_full(run_dir: Path) -> str:
    """Return why the store may take no more; an empty text if it may."""
    path = run_dir / FILE_NAME
    try:
        # After a power cut the file may be empty. Its presence alone means that the store is full.
        return path.read_text(errors="replace") or f"[retention] max_bytes is reached, says {path}"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
