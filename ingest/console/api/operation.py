"""Operations of the API: each has models for its input and output, and a function that does the work.

The same models check requests and make the OpenAPI description, so that the description cannot drift.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ingest.config.model import Config
from ingest.console.auth.roles import Principal
from ingest.console.problems import ProblemError
from ingest.console.web import (
    DEADLINE_SECONDS,
    Console,
    Endpoint,
    get_address,
    get_console,
    get_principal,
    run_for,
)

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation.

    Attributes:
        console: The console.
        principal: The person or program that calls.
        address: Its IP address.
        path: Parameters of the path.
        body: The checked body; None if the operation has none.
        query: The checked query; None if the operation has none.
    """

    console: Console
    principal: Principal
    address: str
    path: Mapping[str, str]
    body: Any = None
    query: Any = None

    @property
    def config(self) -> Config:
        """The configuration of the console."""
        return self.console.config


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation: what it takes, what it returns, and the function that does it.

    Attributes:
        method: GET or POST.
        path: Path below `/api/v1`.
        summary: What it does, for the description.
        work: The function. It runs in a thread and returns a model, or values for JSON.
        output: Model of the answer.
        body: Model of the body; None without one.
        query: Model of the query; None without one.
        tag: Group in the description.
        seconds: Deadline of the work.
    """

    method: str
    path: str
    summary: str
    work: Callable[[Call], Any]
    output: type[BaseModel]
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    tag: str = "node"
    seconds: float = DEADLINE_SECONDS
    max_bytes: int = field(default=64 * 1024)

    def to_endpoint(self, prefix: str) -> Endpoint:
        """Return the endpoint that serves this operation."""
        return Endpoint(self.method, prefix + self.path, self._serve, max_bytes=self.max_bytes)

    async def _serve(self, request: Request) -> Response:
        call = Call(
            get_console(request),
            get_principal(request),
            get_address(request),
            request.path_params,
            None if self.body is None else parse_model(self.body, await _read_json(request)),
            None if self.query is None else parse_model(self.query, dict(request.query_params)),
        )
        found = await run_for(request, self.seconds, functools.partial(self.work, call))
        values = found.model_dump(mode="json") if isinstance(found, BaseModel) else found
        return JSONResponse(values)


async def _read_json(request: Request) -> Any:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await request.body()
    if content and content_type != "application/json":
        raise ProblemError(400, "the body is not of the type application/json", "set Content-Type")
    if not content:
        return {}
    try:
        return await request.json()
    except (ValueError, RecursionError):
        raise ProblemError(400, "the body is no JSON", "see /api/v1/openapi.json") from None


def parse_model(model: type[T], values: Any) -> T:
    """Check values.

    Raises:
        ProblemError: They do not fit. The problem names the fields, but no values: these may be of patients.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False, include_context=False)[:10]
        ]
        raise ProblemError(422, "; ".join(faults), "see /api/v1/openapi.json") from None
