"""Libraries that stand in for other file systems; a process takes one by LD_PRELOAD."""

import os
import subprocess
from pathlib import Path

from tests.support.peers import require_program


def other_file_system(folder: Path, **faults: Path) -> dict[str, str]:
    """The environment of a process for which the file system below some folders lacks calls.

    Args:
        folder: Where the library is built.
        faults: Folders by the names of `tests/faults/other_file_system.c`, in lower case.
    """
    source = Path(__file__).parents[1] / "faults" / "other_file_system.c"
    library = folder / "other_file_system.so"
    if not library.exists():
        compiler = require_program("gcc")
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
    places = {name.upper(): str(path) for name, path in faults.items()}
    return {**os.environ, "LD_PRELOAD": str(library), **places}
