"""Files in the API: download of a stored instance, and the test of routes with a file."""

import functools
import os
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ingest.audit.recorder import Action
from ingest.console.api import models, request_models
from ingest.console.api.actions import record_action
from ingest.console.api.lists import find_instance, read_id
from ingest.console.api.operation import Call, Operation, parse_model
from ingest.console.problems import ProblemError
from ingest.console.web import (
    Console,
    Endpoint,
    get_address,
    get_console,
    get_principal,
    run_blocking,
)
from ingest.errors import ConfigError, PathEscapesError
from ingest.filesystem.beneath import open_beneath
from ingest.ledger import Instance
from ingest.ledger.records import InstanceState
from ingest.operations.routes import RouteExplanation, explain_routes

CHUNK_BYTES: Final = 256 * 1024
CHUNK_SECONDS: Final = 20.0

UPLOAD_BYTES: Final = 8 * 1024**2
"""Largest upload for a test of routes. The conditions need the header only, so the rest may be cut off."""

UPLOAD_SECONDS: Final = 60.0

_FOLDERS: Final = frozenset({InstanceState.STORED, InstanceState.VARIANT, InstanceState.QUARANTINED})


def open_instance(console: Console, row: Instance) -> FileIO:
    """Open the file of an instance.

    Raises:
        ProblemError: The instance has no file any more.
    """
    if row.state not in _FOLDERS:
        raise ProblemError(409, f"instance {row.id} is {row.state.value}, so it has no file")
    is_quarantined = row.state is InstanceState.QUARANTINED
    root = console.config.quarantine_dir if is_quarantined else console.config.store_root
    try:
        # The key comes from the ledger and holds names that peers chose. It must not leave the folder.
        fd = open_beneath(root, row.store_key)
    except (OSError, PathEscapesError):
        raise ProblemError(
            503, f"the file of instance {row.id} cannot be opened", "see `ingest ledger verify`"
        ) from None
    return FileIO(fd)


def name_download(row: Instance) -> str:
    """Return a name for a downloaded file. A peer chose the UID, so only digits and dots remain."""
    uid = "".join(sign for sign in row.sop_instance_uid if sign in "0123456789.")[:64].strip(".")
    return f"{uid or row.id}.dcm"


async def download_file(request: Request) -> Response:
    """Send the Part 10 file of an instance."""
    console = get_console(request)
    if not console.settings.download:
        raise ProblemError(403, "[console] download is false, so no file leaves by the console")
    call = Call(console, get_principal(request), get_address(request), request.path_params)
    # The file is closed with its object, also if the response never begins.
    is_sent = request.method != "HEAD"
    row, file = await run_blocking(request, _open_download, call, is_sent)
    size = os.fstat(file.fileno()).st_size
    headers = {
        "content-disposition": f'attachment; filename="{name_download(row)}"',
        "content-length": str(size),
    }
    if not is_sent:
        file.close()
        return Response(None, 200, headers, "application/dicom")
    return StreamingResponse(_read_file(console, file, size), 200, headers, "application/dicom")


def _open_download(call: Call, is_sent: bool) -> tuple[Instance, FileIO]:
    row = find_instance(call, read_id(call))
    file = open_instance(call.console, row)
    if is_sent:
        record_action(
            call,
            Action.DOWNLOAD,
            f"instance/{row.id}",
            study_uid=row.study_uid,
            sop_instance_uid=row.sop_instance_uid,
        )
    return row, file


async def _read_file(console: Console, file: FileIO, size: int) -> AsyncIterator[bytes]:
    """Yield the file in chunks, so that memory does not grow with the image."""
    with file:
        while left := size - file.tell():
            chunk = await console.work.run(
                CHUNK_SECONDS, functools.partial(file.read, min(CHUNK_BYTES, left))
            )
            if not chunk:
                return  # the file was cut: the client sees fewer bytes than announced
            yield chunk


def test_routes(call: Call) -> dict[str, Any]:
    """Explain which routes take a stored instance."""
    body: request_models.RouteTest = call.body
    row = find_instance(call, body.id)
    return _to_answer(explain_instance(call.console, row, body))


def explain_instance(
    console: Console, row: Instance, assumed: request_models.RouteTest | request_models.AssumedCaller
) -> RouteExplanation:
    """Explain which routes take the file of an instance."""
    with open_instance(console, row) as file:
        return _explain(console, file.fileno(), assumed)


def _explain(
    console: Console,
    fd: int,
    assumed: request_models.RouteTest | request_models.AssumedCaller,
    *,
    is_whole: bool = True,
) -> RouteExplanation:
    path = Path(f"/proc/self/fd/{fd}")
    try:
        [found] = explain_routes(
            console.config,
            [path],
            assumed.calling_ae,
            assumed.called_ae,
            assumed.source,
            is_whole=is_whole,
        )
    except ConfigError as error:  # the file of a map was changed since the start
        return RouteExplanation(path, error=str(error))
    return found


def _to_answer(found: RouteExplanation) -> dict[str, Any]:
    if found.routing is None:
        raise ProblemError(422, f"the file cannot be read: {found.error}", "send a DICOM file")
    return {name: value for name, value in found.to_json().items() if name != "file"}


async def test_routes_with_file(request: Request) -> Response:
    """Explain which routes take an uploaded file. It is kept nowhere."""
    console = get_console(request)
    assumed = parse_model(request_models.AssumedCaller, dict(request.query_params))
    content = await request.body()
    found = await run_blocking(request, explain_upload, console, content, assumed)
    return JSONResponse(_to_answer(found))


def explain_upload(
    console: Console, content: bytes, assumed: request_models.AssumedCaller
) -> RouteExplanation:
    """Explain which routes take a file that a person sent."""
    # In memory: the disk of a node may be full, and the file must not stay anywhere.
    fd = os.memfd_create("route-test", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        return _explain(console, fd, assumed, is_whole=False)
    finally:
        os.close(fd)


OPERATIONS: Final = (
    Operation(
        "POST",
        "/routes/test",
        "Explain which routes take a stored instance",
        test_routes,
        models.RouteTestResult,
        body=request_models.RouteTest,
        tag="routes",
    ),
)


def list_endpoints(prefix: str) -> tuple[Endpoint, ...]:
    """Return the endpoints whose body or answer is a file."""
    return (
        Endpoint("GET", f"{prefix}/instances/{{id}}/file", download_file),
        Endpoint(
            "POST",
            f"{prefix}/routes/test-file",
            test_routes_with_file,
            max_bytes=UPLOAD_BYTES,
            seconds=UPLOAD_SECONDS,
        ),
    )
