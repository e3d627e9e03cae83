"""Style sheets, scripts and icons, read once at the start.

Only names that were found at the start are served, so no path can leave the folder.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from ingest.console.problems import ProblemError
from ingest.console.web import Endpoint

FOLDER: Final = Path(__file__).parent / "static"

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    media_type: str
    etag: str


def _read_assets() -> dict[str, _Asset]:
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and path.suffix in _TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[str(path.relative_to(FOLDER))] = _Asset(content, _TYPES[path.suffix], etag)
    return found


class StaticFiles:
    """The handler of `/static/`."""

    def __init__(self) -> None:
        """Read all files."""
        self._assets = _read_assets()

    async def serve_asset(self, request: Request) -> Response:
        """Serve one file; 304 if the browser has it."""
        asset = self._assets.get(request.path_params["name"])
        if asset is None:
            raise ProblemError(404, "there is no such file")
        headers = {"etag": asset.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == asset.etag:
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)

    def list_endpoints(self) -> tuple[Endpoint, ...]:
        """Return the route of all files."""
        return (Endpoint("GET", "/static/{name:path}", self.serve_asset),)
