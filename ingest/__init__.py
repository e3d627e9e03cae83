"""A node that receives medical images over DICOM TLS, keeps them durably and forwards them.

`ingest.__version__` is the version of the installed distribution.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["__version__"]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Read the version when it is asked for: metadata cost more than most imports."""
        if name == "__version__":
            # By its name, because every module imports this one: none of them depends on processes.
            return import_module("ingest.build_info").read_version()
        raise AttributeError(f"module 'ingest' has no attribute {name!r}")
