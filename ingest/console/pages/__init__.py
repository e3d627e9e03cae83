"""Pages for people."""

from typing import Final

from ingest.console.pages.overview import show_overview
from ingest.console.web import Endpoint

ENDPOINTS: Final = (Endpoint("GET", "/", show_overview),)
"""Every page, with its handler. `ingest.console.auth.roles` has the role of each."""
