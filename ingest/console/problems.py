"""Errors of the console as values: RFC 9457 problem details, with the remedy of the error."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

TITLES = {
    400: "The request is malformed",
    401: "A login is needed",
    403: "Your role does not allow this",
    404: "There is no such thing",
    405: "This method is not allowed here",
    408: "The request came too slowly",
    409: "The present state does not allow this",
    413: "The request is too large",
    421: "This host name is not served",
    422: "A value cannot be used",
    429: "Too many attempts",
    500: "The console has a defect",
    503: "A part of the node is away or busy",
}


class ProblemError(Exception):
    """An error that the client of a request gets.

    Attributes:
        status: Status of the response.
        detail: Cause, in one sentence, without patient data.
        remedy: The next step.
        headers: Further headers of the response.
    """

    def __init__(
        self, status: int, detail: str, remedy: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.remedy = remedy
        self.headers = headers or {}


def to_problem(error: ProblemError, **more: Any) -> JSONResponse:
    """Return an error as a response of the API."""
    content = {
        "type": "about:blank",
        "title": TITLES.get(error.status, "The request failed"),
        "status": error.status,
        "detail": error.detail,
        "remedy": error.remedy,
        **more,
    }
    return JSONResponse(content, error.status, headers=error.headers, media_type="application/problem+json")


def wants_html(request: Request) -> bool:
    """Return whether a person asks with a browser, so that errors are pages."""
    path = request.url.path
    return not path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def answer_error(request: Request, error: ProblemError) -> Response:
    """Return an error as a page or as problem details."""
    console = request.app.state.console
    if wants_html(request):
        response: Response = console.pages.TemplateResponse(
            request,
            "error.html",
            {"status": error.status, "title": TITLES.get(error.status, ""), "error": error},
            status_code=error.status,
            headers=error.headers,
        )
        return response
    return to_problem(error)
