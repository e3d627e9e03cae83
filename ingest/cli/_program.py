"""How a person calls this program, for commands that the person can paste."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def name_program() -> str:
    """Return the words that start this program from the folder in which it was started."""
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m ingest.cli"
    found = shutil.which("ingest")
    if found is not None and os.path.exists(called) and os.path.samefile(found, called):
        return "ingest"
    return shlex.quote(called)
