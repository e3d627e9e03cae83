"""Optional parts of the installation: the extras of the distribution, and how to tell that one is missing.

pyproject.toml names the packages of each extra. A test compares the two. The extra `postgresql` also needs a
library of the system, libpq, which pip does not install.
"""

import sys
from importlib.util import find_spec
from typing import Final

EXTRAS: Final = {
    "console": (
        "argon2",
        "authlib",
        "httpx",
        "jinja2",
        "joserfc",
        "python_multipart",
        "starlette",
        "uvicorn",
    ),
    "postgresql": ("psycopg",),
    # pyjpegls has no wheel for Python 3.14. Where it was built from its source, it is used.
    "transcode": (
        *("gdcm", "numpy", "openjpeg", "rle"),
        *(("jpeg_ls",) if sys.version_info < (3, 14) else ()),
    ),
}
"""Modules that each extra installs."""

_BUNDLED_LIBPQ: Final = "psycopg_binary"
"""A package that has a libpq inside. No extra installs it; an administrator may have."""


def find_missing_modules(extra: str) -> list[str]:
    """Return the modules of an extra that are not installed. Nothing is imported."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def lacks_libpq() -> bool:
    """Whether psycopg is installed, and the system lacks the library that it loads. Nothing is loaded."""
    if find_missing_modules("postgresql") or find_spec(_BUNDLED_LIBPQ) is not None:
        return False
    from ctypes.util import find_library  # noqa: PLC0415 - few commands get here, and all import this module

    return find_library("pq") is None  # as psycopg looks for it


def find_extra(module: str | None) -> str | None:
    """Return the extra that installs a module; None if no extra does."""
    top = (module or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def explain_missing_libpq() -> tuple[str, str]:
    """Return cause and remedy for a system without the library that the extra `postgresql` needs."""
    return "needs libpq, the client library of PostgreSQL, which is not installed", "apt-get install libpq5"


def explain_missing_extra(extra: str, module: str = "another module") -> tuple[str, str]:
    """Return cause and remedy for an extra that something needs and that is not installed.

    Args:
        extra: Name of the extra.
        module: A module to name if those that this Python needs are installed.
    """
    missing = ", ".join(find_missing_modules(extra)) or module
    cause = f"needs the extra `{extra}`, which is not installed: no {missing}"
    return cause, f"pip install './dicom_ingest-….whl[{extra}]'"


def explain_import_error(error: ImportError) -> tuple[str, str] | None:
    """Return cause and remedy if an extra, or its library, is missing; None for another error."""
    if (extra := find_extra(error.name)) is not None:
        return explain_missing_extra(extra)
    # psycopg names no module if it finds no libpq.
    return explain_missing_libpq() if error.name is None and lacks_libpq() else None
