"""The OpenAPI description of the API, made from its operations and their models."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ingest.console.api import models, request_models
from ingest.console.api.operation import Operation
from ingest.console.auth.roles import ROUTE_ROLES

_REFERENCE: Final = "#/components/schemas/{model}"
_ERRORS: Final = ("400", "401", "403", "404", "409", "422", "429", "503")

_JSON: Final = "application/json"


def describe_api(operations: Iterable[Operation], prefix: str, version: str) -> dict[str, Any]:
    """Return the description as an object of OpenAPI 3.1."""
    known = list(operations)
    used: dict[type[BaseModel], None] = {models.Problem: None, request_models.AssumedCaller: None}
    for each in known:
        used |= dict.fromkeys(model for model in (each.output, each.body, each.query) if model is not None)
    used[models.RouteTestResult] = None
    keys, definitions = models_json_schema(
        [(model, "validation") for model in used], ref_template=_REFERENCE, by_alias=True
    )
    schemas = {model: keys[model, "validation"] for model in used}
    paths: dict[str, dict[str, Any]] = {}
    for each in known:
        paths.setdefault(prefix + each.path, {})[each.method.lower()] = _describe(each, prefix, schemas)
    for path, methods in _describe_files(prefix, schemas).items():
        paths.setdefault(path, {}).update(methods)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dicom-ingest",
            "version": version,
            "description": "What the console shows and does. Fields may be added within a version.",
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "responses": {
                "Problem": {
                    "description": "The request failed; the body says why and what to do.",
                    "content": {"application/problem+json": {"schema": schemas[models.Problem]}},
                }
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "session",
                    "description": "A login. POST needs the header X-CSRF-Token too.",
                },
            },
        },
    }


def _describe(operation: Operation, prefix: str, schemas: Mapping[type[BaseModel], Any]) -> dict[str, Any]:
    described = _frame(operation.method, prefix + operation.path, operation.summary, operation.tag)
    described["responses"]["200"] = {
        "description": "Done.",
        "content": {_JSON: {"schema": schemas[operation.output]}},
    }
    if operation.body is not None:
        required = any(field.is_required() for field in operation.body.model_fields.values())
        described["requestBody"] = {
            "required": required,
            "content": {_JSON: {"schema": schemas[operation.body]}},
        }
    if operation.query is not None:
        described["parameters"] += _describe_query(operation.query)
    return described


def _frame(method: str, path: str, summary: str, tag: str) -> dict[str, Any]:
    role = ROUTE_ROLES[f"{method} {path}"]
    names = re.findall(r"\{(\w+)\}", path)
    return {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()} {path.removeprefix('/api/v1/')}").strip("_"),
        "summary": summary,
        "description": f"Needs the role {role.word}.",
        "tags": [tag],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ],
        "responses": {code: {"$ref": "#/components/responses/Problem"} for code in _ERRORS},
    }


def _describe_query(model: type[BaseModel]) -> list[dict[str, Any]]:
    properties = model.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in properties.items()
    ]


def _describe_files(prefix: str, schemas: Mapping[type[BaseModel], Any]) -> dict[str, Any]:
    """Describe the routes whose body or answer is no JSON."""
    download = _frame("GET", f"{prefix}/instances/{{id}}/file", "Download a Part 10 file", "instances")
    download["responses"]["200"] = {
        "description": "The file.",
        "content": {"application/dicom": {"schema": {"type": "string", "format": "binary"}}},
    }
    upload = _frame("POST", f"{prefix}/routes/test-file", "Explain which routes take a file", "routes")
    upload["parameters"] += _describe_query(request_models.AssumedCaller)
    upload["requestBody"] = {
        "required": True,
        "content": {"application/dicom": {"schema": {"type": "string", "format": "binary"}}},
    }
    upload["responses"]["200"] = {
        "description": "Done.",
        "content": {_JSON: {"schema": schemas[models.RouteTestResult]}},
    }
    events = _frame("GET", f"{prefix}/events", "Stream the status as server-sent events", "node")
    events["responses"]["200"] = {
        "description": "Events of the name `status`, each with the status as JSON.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    return {
        f"{prefix}/instances/{{id}}/file": {"get": download},
        f"{prefix}/routes/test-file": {"post": upload},
        f"{prefix}/events": {"get": events},
    }
