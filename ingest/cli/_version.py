"""The text of `ingest --version`."""

import platform
from collections.abc import Iterator

from ingest.build_info import find_commit, read_version
from ingest.extras import EXTRAS, find_missing_modules


def describe_version() -> Iterator[str]:
    """Yield the lines: the version first, then what a report of a fault needs."""
    yield f"ingest, version {read_version()}"
    commit = find_commit()
    yield f"commit   {commit.name} of {commit.date}" if commit is not None else "commit   unknown"
    yield f"Python   {platform.python_version()}"
    yield f"OpenSSL  {_describe_openssl()}"
    installed = [extra for extra in EXTRAS if not find_missing_modules(extra)]
    yield f"extras   {', '.join(installed) or 'none'}"


def _describe_openssl() -> str:
    """Return the version of the library in use; a library that does not load is worth to be known, too."""
    try:
        from ingest.ext.tls_context import openssl_version
    except ImportError as error:
        return f"does not load: {error}"
    return openssl_version().removeprefix("OpenSSL ")
