"""The version of a data folder, in `<data_dir>/format.json`.

The file names the format of everything below the folder: spool, store, quarantine, run and the console's
files. The ledger has a version of its own, its schema version. A program reads all formats up to its own one.
It refuses a newer one before it creates, changes or removes anything, because it would not see what the newer
program has put there.

| format | since | difference |
|---|---|---|
| 1 | 0.1.0 | the first one; folders without the file have this format too |
"""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.build_info import read_version
from ingest.errors import BootError
from ingest.filesystem.calls import sync_folder_fd
from ingest.program import DATA_FORMAT

FILE_NAME: Final = "format.json"
_FILE_MODE: Final = 0o640


@dataclass(frozen=True, slots=True)
class DataFormat:
    """What a data folder says about itself.

    Attributes:
        format: Number of the format.
        program: Release that wrote the folder last, for people.
    """

    format: int
    program: str


def read_data_format(data_dir: Path) -> DataFormat | None:
    """Read the version of a data folder; None for a new folder, or one from before the file.

    Raises:
        BootError: The file has no version.
        OSError: The file cannot be read.
    """
    path = data_dir / FILE_NAME
    try:
        found = json.loads(path.read_bytes())
        number, program = found["format"], found["program"]
        if type(number) is not int or number < 1:
            raise ValueError(f"{number!r} is no number of a format")
        return DataFormat(number, str(program))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BootError(
            f"[node] data_dir: {path} does not name a format; restore it from a backup, or remove it if "
            f"dicom-ingest {read_version()} or an older release used this folder last"
        ) from error


def require_data_format(data_dir: Path) -> DataFormat | None:
    """Return the version of a data folder that this program can use; None as `read_data_format`.

    Raises:
        BootError: A newer program has used the folder. Nothing was changed.
        OSError: The file cannot be read.
    """
    found = read_data_format(data_dir)
    if found is not None and found.format > DATA_FORMAT:
        raise BootError(
            f"[node] data_dir: {data_dir} has format {found.format} of dicom-ingest {found.program}, and "
            f"this program, dicom-ingest {read_version()}, knows formats up to {DATA_FORMAT}; start the "
            "newer program, or restore a backup from before the upgrade (docs/how-to/upgrade.md)"
        )
    return found


def write_data_format(data_dir: Path) -> None:
    """Write the version of this program into its data folder, durably, unless it is there already.

    Raises:
        OSError: The disk is full or failing. The next start tries again.
    """
    wanted = DataFormat(DATA_FORMAT, read_version())
    if read_data_format(data_dir) == wanted:
        return
    temporary = data_dir / f".{FILE_NAME}.{os.getpid()}"
    content = json.dumps({"format": wanted.format, "program": wanted.program}) + "\n"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
        try:
            os.write(fd, content.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(data_dir / FILE_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_folder_fd(folder)
    finally:
        os.close(folder)
