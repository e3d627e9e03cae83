"""`python -m benchmarks`: what receiving costs this node, for a few sizes; about two minutes."""

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.load import Load, run
from benchmarks.node import Node, ours
from benchmarks.node import whole as whole_node
from benchmarks.receivers import make_pki

WORK = ((8 << 10, 2000), (128 << 10, 800), (512 << 10, 300), (27 << 20, 4))
"""Bytes of a data set, instances of each association."""


@click.command()
@click.option(
    "--runs", default=3, show_default=True, help="Counted runs of each size, after one that warms up."
)
@click.option("--associations", default=4, show_default=True)
@click.option("--pdu", default=131072, show_default=True, help="Bytes of a P-DATA-TF.")
@click.option(
    "--durability", type=click.Choice(["fsync", "page-cache"]), default="page-cache", show_default=True
)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where the node keeps its data.  [default: a new one]"
)
@click.option("--whole", is_flag=True, help="With queue, persist worker and ledger.")
@click.option("--keep", is_flag=True, help="Leave the node's folder.")
@click.option("--json", "as_json", is_flag=True)
def main(  # noqa: PLR0917 - click names them
    runs: int,
    associations: int,
    pdu: int,
    durability: str,
    folder: Path | None,
    whole: bool,
    keep: bool,
    as_json: bool,
) -> None:
    """Measure what receiving over mutual TLS costs this node's processes."""
    base = Path(tempfile.mkdtemp(prefix="ingest-bench-", dir=folder))
    rows = []
    start = whole_node if whole else ours
    with start(base, make_pki(base / "pki"), durability=durability) as node:
        for size, instances in WORK:
            load = Load(size, instances, associations, pdu)
            run(node.target, load)
            rows.append(_row(load, [_measure(node, load) for _ in range(runs)]))
        memory = {"largest": max(node.group.pss_each().values())}
    if not keep:
        shutil.rmtree(base)  # at the end: a file system that has just deleted much creates slowly
    if as_json:
        click.echo(
            json.dumps({"rows": rows, "pss": memory, "durability": durability, "whole": whole}, indent=2)
        )
        return
    table = Table("data set", "instances/s", "MB/s", "CPU s/GB", "CPU ms each", "p50 ms", "p99 ms", "failed")
    table.title = f"{associations} associations, {durability}, median of {runs} (least – most)"
    for row in rows:
        table.add_row(
            f"{row['size'] >> 10} KB",
            *(_shown(row[name]) for name in ("rate", "mb_s", "cpu_s_gb", "cpu_ms", "p50_ms", "p99_ms")),
            str(row["failed"]),
        )
    Console().print(table)
    Console().print(
        "PSS of the largest process, MB:", {name: round(size / 1e6, 1) for name, size in memory.items()}
    )
    if keep:
        click.echo(f"the node's folder is {base}")


def _measure(node: Node, load: Load) -> dict[str, float]:
    before = node.group.by_name()["ingest-listen"]
    result = run(node.target, load)
    cpu = node.group.by_name()["ingest-listen"] - before
    ordered = sorted(result.latencies)
    return {
        "rate": result.instances / result.seconds,
        "mb_s": result.bytes / result.seconds / 1e6,
        "cpu_s_gb": cpu / (result.bytes / 1e9),
        "cpu_ms": cpu / result.instances * 1e3,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
        "failed": result.failed,
    }


def _row(load: Load, measured: list[dict[str, float]]) -> dict[str, Any]:
    names = ("rate", "mb_s", "cpu_s_gb", "cpu_ms", "p50_ms", "p99_ms")
    spread = {
        name: [f([m[name] for m in measured]) for f in (statistics.median, min, max)]  # type: ignore[operator]
        for name in names
    }
    return {"size": load.size, **spread, "failed": sum(int(m["failed"]) for m in measured)}


def _shown(spread: list[float]) -> str:
    median, least, most = spread
    digits = 0 if median >= 100 else 2 if median >= 1 else 3
    return f"{median:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


if __name__ == "__main__":
    main()
