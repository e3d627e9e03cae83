"""What the tests of faults ask of a node's log and folders."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.nodes import Node, eventually

DEFECTS = {"connection_failed", "child_failed", "child_died", "event_out_of_place", "library"}
"""Events that say that we, and not the peer, did something wrong."""


def receive(**keys: object) -> str:
    """`[receive]` as TOML, with short deadlines for whatever is not given."""
    defaults = {"processes": 2, "min_free_bytes": 0, "artim_seconds": 0.5}
    return "[receive]\n" + "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in (defaults | keys).items()
    )


class Watch:
    """The log of a node from now on."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._path = node.folder / "log"
        self._start = self._path.stat().st_size

    def events(self, name: str = "") -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as file:
            file.seek(self._start)
            lines = file.read().splitlines()
        for line in lines:
            if line.startswith(b"{") and line.endswith(b"}"):
                event = json.loads(line)
                if name in {"", event["event"]}:
                    yield event

    def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """The first event of that name whose fields are equal to these, or contain the text."""

        def found() -> dict[str, Any] | None:
            return next((event for event in self.events(name) if _has(event, fields)), None)

        try:
            return eventually(found, 5.0)
        except AssertionError:
            seen = "\n".join(map(str, self.events())) or "nothing"
            raise AssertionError(f"no {name} with {fields}; logged was:\n{seen}") from None


def _has(event: dict[str, Any], fields: dict[str, Any]) -> bool:
    return all(key in event and _fits(event[key], wanted) for key, wanted in fields.items())


def _fits(value: Any, wanted: Any) -> bool:
    return wanted in value if isinstance(wanted, str) and isinstance(value, str) else value == wanted


def assert_sound(node: Node) -> None:
    """Nothing in the log blames ourselves."""
    lines = [json.loads(line) for line in node.log.splitlines() if line.startswith("{")]
    found = [
        event for event in lines if event["event"] in DEFECTS or {"exception", "traceback"} & event.keys()
    ]
    assert not found, found
    assert "Traceback" not in node.log


def listeners(node: Node) -> set[int]:
    """The pids of the listener processes."""
    return {child.pid for child in node.children("ingest-listen")}


def nothing_received(node: Node, spool: Path | None = None) -> None:
    """No partial file, and nothing waits in the spool."""
    root = spool or node.spool

    def left() -> list[Path]:
        return [*root.glob("L*/partial/*"), *root.glob("L*/ready/*")]

    eventually(lambda: not left(), 10.0, f"an empty spool, there is {left()}")


def partial_of(node: Node, size: int, spool: Path | None = None) -> Path:
    """The partial file once it holds at least `size` bytes."""

    def found() -> Path | None:
        for path in (spool or node.spool).glob("L*/partial/*"):
            if path.stat().st_size >= size:
                return path
        return None

    path: Path = eventually(found, 5.0, f"a partial file of {size} bytes")
    return path


def row(node: Node, sop: str, state: str) -> dict[str, Any]:
    """The ledger's row of an instance, once it is there."""
    columns = ("store_key", "note", "size", "sop_class_uid", "study_uid", "series_uid")
    query = f"SELECT {', '.join(columns)} FROM instances WHERE sop_instance_uid = ? AND state = ?"
    rows = eventually(lambda: node.query(query, sop, state), 10.0, f"a row of {sop} as {state}")
    assert len(rows) == 1
    return dict(zip(columns, rows[0], strict=True))


def known(node: Node, sop: str) -> list[tuple[Any, ...]]:
    """What the ledger holds of an instance now."""
    return node.query("SELECT state FROM instances WHERE sop_instance_uid = ?", sop)


def names(folder: Path, skip: Callable[[Path], bool] = lambda _: False) -> set[Path]:
    """Every file below a folder."""
    found = (Path(root) / name for root, _, files in os.walk(folder) for name in files)
    return {path for path in found if not skip(path)}
