"""The pages of the console. Each module has the handlers of one page, and its routes in `ENDPOINTS`."""

from typing import Final

from ingest.console.pages import (
    account,
    configuration,
    deliveries,
    overview,
    peers,
    quarantine,
    routes,
    studies,
)
from ingest.console.web import Endpoint

ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *overview.ENDPOINTS,
    *studies.ENDPOINTS,
    *deliveries.ENDPOINTS,
    *quarantine.ENDPOINTS,
    *peers.ENDPOINTS,
    *routes.ENDPOINTS,
    *configuration.ENDPOINTS,
    *account.ENDPOINTS,
)
