"""Filters of the templates: times, sizes, rates, states.

Each returns text that Jinja2 escapes, except `mark_code`, which escapes by itself.
"""

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from markupsafe import Markup, escape

_CODE: Final = re.compile(r"`([^`]+)`")

_KINDS: Final = {
    "ok": (
        "stored",
        "delivered",
        "well",
        "accepting",
        "closed",
        "running",
        "valid",
        "took",
        "sound",
        "success",
    ),
    "info": ("waiting", "awaiting", "sending", "variant", "booting", "note", "growing"),
    "warn": (
        *("retry", "half-open", "paused", "degraded", "draining", "quarantined", "conflict", "warning"),
        *("ends soon", "held"),
    ),
    "fail": ("dead", "open", "failing", "silent", "refused", "ended", "fault", "failed", "away", "revoked"),
}
_KIND_OF: Final = {state: kind for kind, states in _KINDS.items() for state in states}
_ICONS: Final = {
    "retry": "retry",
    "paused": "pause",
    "dropped": "drop",
    "held": "pause",
    "sending": "deliveries",
}
_KIND_ICONS: Final = {"ok": "ok", "warn": "warn", "fail": "fail", "info": "info"}

_UNITS: Final = ((60.0, "s", 1), (3600.0, "min", 60), (172_800.0, "h", 3600), (math.inf, "days", 86_400))


def find_kind(state: object) -> str:
    """Return the kind of a state: ok, info, warn, fail or idle. It chooses the colour beside the word."""
    return _KIND_OF.get(str(state), "idle")


def find_icon(state: object) -> str:
    """Return the icon beside the word of a state."""
    return _ICONS.get(str(state)) or _KIND_ICONS.get(find_kind(state), "idle")


def format_seconds(seconds: float | None) -> str:
    """Write a duration in its largest unit: "4 s", "12 min", "3 h", "5 days"."""
    if seconds is None:
        return "–"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    unit, divisor = next((unit, divisor) for limit, unit, divisor in _UNITS if abs(seconds) < limit)
    return f"{int(abs(seconds) // divisor)} {unit}"


def format_relative(unix_ms: float, now: float | None = None) -> str:
    """Write a time as its distance from now: "3 min ago" or "in 3 min"."""
    seconds = (time.time() if now is None else now) - unix_ms / 1000
    if abs(seconds) < 1.5:
        return "just now"
    distance = format_seconds(math.floor(abs(seconds)))
    return f"in {distance}" if seconds < 0 else f"{distance} ago"


def format_absolute(unix_ms: float) -> str:
    """Write a time in the time zone of the node, to the second."""
    local = datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S} {local:%Z}".rstrip()


def format_iso(unix_ms: float) -> str:
    """Write a time for the attribute `datetime`."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")


def format_bytes(size: float | None) -> str:
    """Write bytes in decimal units, as `ingest status` does."""
    if size is None:
        return "–"
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if abs(amount) < 1000 or unit == "PB":
            return f"{amount:.0f} {unit}" if unit == "bytes" or abs(amount) >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return ""


def format_count(count: float | None) -> str:
    """Write a number with separators of thousands."""
    return "–" if count is None else f"{count:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def format_rate(rate: float | None) -> str:
    """Write a rate per second with as many digits as help."""
    if rate is None:
        return "–"
    if rate == 0:
        return "0/s"
    if rate < 0.1:
        return f"{rate * 60:.1f}/min" if rate * 60 >= 0.05 else "<0.1/min"
    return f"{rate:.1f}/s" if rate < 100 else f"{format_count(rate)}/s"


def format_status(status: int | None) -> str:
    """Write a DIMSE status as PS3.7 does: A700H."""
    return "" if status is None else f"{status:04X}H"


def format_dicom_date(date: str | None) -> str:
    """Write a DICOM date (PS3.5 6.2, VR DA) with hyphens; other text unchanged."""
    text = date or ""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def format_person_name(name: str | None) -> str:
    """Write a person's name (PS3.5 6.2, VR PN) as "Family, Given"; further groups follow in brackets."""
    groups = [group for group in (name or "").split("=") if group.strip("^ ")]
    written = []
    for group in groups:
        family, _, given = group.partition("^")
        rest = " ".join(part for part in given.split("^") if part)
        written.append(f"{family}, {rest}" if rest else family)
    if not written:
        return ""
    return written[0] + (f" ({' · '.join(written[1:])})" if len(written) > 1 else "")


def mark_code(text: str) -> Markup:
    """Escape a text and put what stands between backquotes into `<code>`."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped on this line


def with_query(query: Mapping[str, Any], **changes: Any) -> str:
    """Return a query string with changes; a value of None or "" leaves the key out."""
    merged = {**query, **changes}
    return urlencode({key: value for key, value in merged.items() if value not in (None, "")})


FILTERS: Final = {
    "absolute": format_absolute,
    "bytes": format_bytes,
    "code": mark_code,
    "count": format_count,
    "dicom_date": format_dicom_date,
    "iso": format_iso,
    "person": format_person_name,
    "rate": format_rate,
    "relative": format_relative,
    "seconds": format_seconds,
    "state_icon": find_icon,
    "state_kind": find_kind,
    "status": format_status,
    "with_query": with_query,
}
