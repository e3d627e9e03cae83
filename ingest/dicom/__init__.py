"""PS3.7, PS3.8 and PS3.10 without I/O of their own: what to send and what was received, as values."""

import sys

if "numpy" not in sys.modules:
    # pydicom takes numpy in where it is installed: threads and memory that listeners must not be forked with.
    sys.modules["numpy"] = None  # type: ignore[assignment]
    try:
        import pynetdicom  # noqa: F401
    finally:
        del sys.modules["numpy"]
