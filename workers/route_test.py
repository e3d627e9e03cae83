"""`ingest routes test`: which routes would take files, and why; nothing is stored or sent."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ingest.config.model import Config
from ingest.dicom.file_header import read_instance_header
from ingest.dicom.part10 import is_part10
from ingest.errors import PeerError
from ingest.routing.node_router import NodeRouter
from ingest.routing.router import Router, RoutingDecision


@dataclass(frozen=True, slots=True)
class Explained:
    """What becomes of one file; `routing` is None where it cannot be read, and `error` says why."""

    path: Path
    routing: RoutingDecision | None = None
    error: str = ""


def explain(
    config: Config,
    paths: Sequence[Path],
    calling_ae: str | None = None,
    called_ae: str | None = None,
    source: str | None = None,
) -> list[Explained]:
    """What the routes say of files, and of all Part 10 files in folders.

    Args:
        config: Whose routes.
        paths: Files and folders.
        calling_ae: As though this AE title had sent them; None is what the File Meta says.
        called_ae: As though they had been sent to this one; likewise.
        source: As though they had been sent from this address; likewise.
    """
    router = NodeRouter(config)
    supposed = {
        "calling_ae": calling_ae,
        "called_ae": called_ae,
        "source": None if source is None else f"dicom://[{source}]:0",
    }
    changes = {name: value for name, value in supposed.items() if value is not None}
    return [_explained(router, path, changes) for path in _files(paths)]


def show(explained: Sequence[Explained], *, as_json: bool) -> int:
    """Print it; returns 1 where a file could not be read, else 0."""
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print_json(json.dumps([_plain(one) for one in explained]))
    else:
        for one in explained:
            console.print("\n".join(_lines(one)))
    return int(any(one.routing is None for one in explained))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(found for found in path.rglob("*") if is_part10(found))
        else:
            yield path


def _explained(router: Router, path: Path, changes: Mapping[str, Any]) -> Explained:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return Explained(path, error=f"cannot be opened: {error.strerror}")
    try:
        facts = read_instance_header(fd, os.fstat(fd).st_size, router.tags)
    except PeerError as error:
        return Explained(path, error=str(error))
    except OSError as error:
        return Explained(path, error=f"cannot be read: {error.strerror}")
    finally:
        os.close(fd)
    return Explained(path, router.route_instance(replace(facts, **changes)))


def _plain(one: Explained) -> dict[str, Any]:
    if one.routing is None:
        return {"file": str(one.path), "error": one.error}
    return {
        "file": str(one.path),
        "destinations": list(one.routing.destinations),
        "routed": one.routing.routed,
        "kept_back": list(one.routing.exclusions),
        "routes": [
            {
                "route": result.route,
                "took": result.is_match,
                "conditions": [
                    {"key": condition.key, "values": list(values), "held": holds}
                    for condition, values, holds in result.conditions
                ],
            }
            for result in one.routing.results
        ],
    }


def _lines(one: Explained) -> Iterator[str]:
    if one.routing is None:
        yield f"[red]{escape(str(one.path))}[/red]: {escape(one.error)}"
        return
    to = ", ".join(one.routing.destinations) or "nowhere"
    yield f"[bold]{escape(str(one.path))}[/bold] → {escape(to)}"
    for result in one.routing.results:
        yield f"  {'[green]took[/green]  ' if result.is_match else 'passed'} {escape(result.route)}"
        for condition, values, holds in result.conditions:
            seen = ", ".join(values) or "nothing"
            yield f"         {escape(condition.key)}: {escape(seen)} {'holds' if holds else 'does not hold'}"
    for remark in one.routing.exclusions:
        yield f"  [yellow]{escape(remark)}[/yellow]: it came from there; return = true in the route sends it"
