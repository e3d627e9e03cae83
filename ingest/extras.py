"""Optional parts of the installation: the extras of the distribution, and how to tell that one is missing.

pyproject.toml names the packages of each extra. A test compares the two.
"""

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
}
"""Modules that each extra installs."""


def find_missing_modules(extra: str) -> list[str]:
    """Return the modules of an extra that are not installed. Nothing is imported."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def find_extra(module: str | None) -> str | None:
    """Return the extra that installs a module; None if no extra does."""
    top = (module or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def explain_missing_extra(extra: str) -> tuple[str, str]:
    """Return cause and remedy for an extra that something needs and that is not installed."""
    missing = ", ".join(find_missing_modules(extra)) or "another module"
    cause = f"needs the extra `{extra}`, which is not installed: no {missing}"
    return cause, f"pip install './dicom_ingest-….whl[{extra}]'"
