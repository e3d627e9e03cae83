"""Times in JSON."""

from datetime import UTC, datetime


def format_iso_time(unix_ms: int) -> str | None:
    """Write Unix milliseconds as an ISO 8601 time in UTC; None for 0, which means never."""
    if not unix_ms:
        return None
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
