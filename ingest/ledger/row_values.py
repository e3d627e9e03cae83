"""Values that both databases accept."""

from typing import Any, Final

TEXT_MAX: Final = 600
"""Maximum length of a text value. PostgreSQL cannot index 2,704 bytes or more, and peers choose their UIDs.
"""


def clean_value(value: Any) -> Any:
    """Make a text acceptable to both databases: PostgreSQL refuses NUL, both refuse lone surrogates."""
    if not isinstance(value, str) or (value.isascii() and "\0" not in value and len(value) <= TEXT_MAX):
        return value
    return value.replace("\0", "")[:TEXT_MAX].encode("utf-8", "replace").decode("utf-8")
