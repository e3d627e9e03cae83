"""The parts of pages in the stream of events: rendered once, and sent to a browser when they have changed."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jinja2

from ingest.console.live.snapshot import Snapshot

COUNTED: Final = ("overview", "deliveries", "quarantine")
"""Pages with a number in the navigation."""


@dataclass(slots=True)
class LiveNews:
    """One snapshot with its parts as HTML, for all browsers.

    Attributes:
        snapshot: The snapshot.
        render: Renders a part of the overview.
        parts: Parts that were rendered already; a part that no browser shows is not rendered.
    """

    snapshot: Snapshot
    render: Callable[[str], str]
    parts: dict[str, str] = field(default_factory=dict)

    def find_part(self, name: str) -> str:
        """Return the HTML of a part."""
        if name not in self.parts:
            self.parts[name] = self.render(name)
        return self.parts[name]


class PartsRenderer:
    """Renders parts from the templates in `parts/`."""

    def __init__(
        self, environment: jinja2.Environment, view: Callable[[Snapshot], Mapping[str, Any]]
    ) -> None:
        self._environment = environment
        self._view = view

    def prepare(self, snapshot: Snapshot) -> LiveNews:
        """Return the news of a snapshot. Its parts are rendered when the first browser needs them."""
        values: dict[str, Any] = {}

        def render(name: str) -> str:
            if name.startswith("count-"):
                counts = {"counts": snapshot.count_attention(), "key": name.removeprefix("count-")}
                return self._environment.get_template("parts/count.html").render(counts)
            if not values:
                values.update(self._view(snapshot))
            return self._environment.get_template(f"parts/{name}.html").render(values)

        return LiveNews(snapshot, render)


class PartsEncoder:
    """Writes the events of one browser, and remembers what it has got."""

    def __init__(self, parts: Collection[str]) -> None:
        """Prepare; `parts` are those of the page, beside the numbers of the navigation."""
        self._parts = (*(f"count-{page}" for page in COUNTED), *parts)
        self._sent: dict[str, str] = {}
        self._versions: Mapping[str, str] = {}

    def encode(self, news: LiveNews) -> bytes:
        """Return the events for this browser; a beat if nothing has changed."""
        events = b""
        current = {name: news.find_part(name) for name in self._parts}
        changed = {name: html for name, html in current.items() if self._sent.get(name) != html}
        if changed:
            self._sent.update(changed)
            events += format_event("parts", changed)
        if news.snapshot.versions != self._versions:
            self._versions = news.snapshot.versions
            events += format_event("versions", self._versions)
        return events or format_event("beat", {})


def format_event(name: str, values: Mapping[str, Any]) -> bytes:
    """Write one event (HTML Living Standard 9.2)."""
    # JSON escapes line breaks, so one line of data is enough.
    return f"event: {name}\ndata: {json.dumps(values)}\n\n".encode()
