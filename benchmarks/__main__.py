"""`python -m benchmarks`: what receiving over mutual TLS costs, ours and others; parts by command."""

import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console
from rich.table import Table

from benchmarks import instructions, judged, markdown, plots, report, suite, workloads
from benchmarks.browsers import measure as measure_browsers
from benchmarks.load import LoadError, run
from benchmarks.options import CONNECTION, LOAD, OUTPUT, PLACES, Bytes, load_of, target_of, with_options
from benchmarks.receivers import NotStartedError, Unavailable
from benchmarks.scale import measure_scale
from benchmarks.workloads import Entrant, Work

DEFAULT_FOLDER = Path("build", "benchmarks")
DURABILITY = click.Choice(["page-cache", "fsync"])
NAMES = click.Choice(list(suite.RECEIVERS))


class Commands(click.Group):
    """Says what went wrong in one line, where it is known."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (LoadError, NotStartedError, Unavailable, instructions.CountError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, invoke_without_command=True)
@click.option("--minutes", default=10.0, show_default=True, help="How long the suite may take.")
@click.option("--pairs", type=click.IntRange(1), help="Counted rounds of each work.  [default: 10]")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Folder for results.json, README.md and the plots.",
)
@click.option("--forwarding", is_flag=True, help="Also from node to node; give it 40 minutes.")
@with_options(PLACES)
@click.pass_context
def main(
    ctx: click.Context,
    /,
    minutes: float,
    pairs: int | None,
    output: Path,
    forwarding: bool,
    **folders: Path | None,
) -> None:
    """Measure what receiving costs: the whole suite, or a part of it by command."""
    if ctx.invoked_subcommand is None:
        more = workloads.forwarded() if forwarding else []
        works = [*(_paired(work, pairs) for work in workloads.suite()), *more]
        _measure(works, folders, output / "results.json", output, minutes=minutes, rest=True)


@main.command()
@click.option("--instances", default=10_000_000, show_default=True, help="Rows of instances.")
@click.option("--url", help="An empty PostgreSQL.  [default: SQLite in --disk]")
@click.option(
    "--disk", type=click.Path(path_type=Path, file_okay=False), help="Folder for SQLite: 2 KB an instance."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures there.")
def scale(instances: int, url: str | None, disk: Path | None, json_path: Path | None) -> None:
    """Fill a ledger, and time each list and page, and what recording costs there."""
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        found = measure_scale(url, Path(folder), instances, click.echo)
    rate = found.recording
    click.echo(
        f"recorded: {rate.full:.0f}/s; in an empty ledger {rate.empty:.0f}/s: {rate.full / rate.empty:.2f}"
    )
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(found), indent=1))


@main.command()
@click.argument("address", required=False, metavar="[HOST:PORT]")
@click.option("--receiver", type=NAMES, help="Start this one here and send to it.")
@with_options(LOAD, CONNECTION, PLACES)
def load(address: str | None, receiver: str | None, **values: Any) -> None:
    """Send load to HOST:PORT, or to a receiver that is started here, and print what came of it."""
    work = load_of(values)
    if (address is None) == (receiver is None):
        raise click.UsageError("name HOST:PORT or --receiver, one of them")
    if address is not None:
        target = target_of(address, values)
        _print_result(run(target, work), Console())
        return
    with (
        suite.places(values["memory"], values["disk"]) as where,
        suite.RECEIVERS[str(receiver)](where.memory / "data", where.keys, durability="page-cache") as one,
    ):
        before = one.group.cpu_seconds()
        result = run(one.target, work)
        cpu = one.group.cpu_seconds() - before
        _print_result(result, Console(), cpu, len(one.missing(result.acknowledged())))


@main.command()
@click.argument("receivers", nargs=-1, required=True, type=NAMES)
@click.option("--pairs", default=workloads.PAIRS, show_default=True, type=click.IntRange(1))
@click.option(
    "--durability", type=click.Choice(["page-cache", "fsync"]), default="page-cache", show_default=True
)
@with_options(LOAD, PLACES, OUTPUT)
def compare(receivers: tuple[str, ...], pairs: int, durability: Any, **values: Any) -> None:
    """Let RECEIVERS take turns at one load; the first is compared with the others."""
    one = load_of(values)
    entrants = tuple(Entrant(name, name, one) for name in dict.fromkeys(receivers))
    place: workloads.Place = "memory" if durability == "page-cache" else "disk"
    _run_parts([Work(workloads.load_name(one), entrants, durability, place, pairs=pairs)], values)


@main.command()
@click.option("--pairs", default=workloads.PAIRS, show_default=True, type=click.IntRange(1))
@with_options(PLACES, OUTPUT)
def storescu(pairs: int, **values: Any) -> None:
    """DCMTK's storescu as the sender, 200 images of 512 KB, with fsync."""
    _run_parts([_paired(workloads.one_by_one(), pairs)], values)


@main.command(name="async")
@click.option("--pairs", default=workloads.PAIRS, show_default=True, type=click.IntRange(1))
@with_options(PLACES, OUTPUT)
def asynchronous(pairs: int, **values: Any) -> None:
    """One association with and without asynchronous operations, with fsync."""
    _run_parts([_paired(workloads.asynchronous(), pairs)], values)


@main.command()
@click.option("--pairs", default=workloads.PAIRS, show_default=True, type=click.IntRange(1))
@with_options(PLACES, OUTPUT)
def churn(pairs: int, **values: Any) -> None:
    """Connect, send one image, release, over and over."""
    _run_parts([_paired(workloads.churn(), pairs)], values)


@main.command()
@click.option("--size", type=Bytes(), multiple=True, default=("8K", "512K", "27M"), show_default=True)
@click.option("--pairs", default=workloads.PAIRS, show_default=True, type=click.IntRange(1))
@click.option(
    "--files", type=click.IntRange(20), default=0, help="Of each size.  [default: some seconds of them]"
)
@with_options(PLACES, OUTPUT)
def send(size: tuple[int, ...], pairs: int, files: int, **values: Any) -> None:
    """Senders alone, ours and others, with files of each size to the floor."""
    _run_parts([_paired(workloads.sending(each, files), pairs) for each in size], values)


@main.command()
@click.option("--size", type=Bytes(), multiple=True, default=("512K", "8K"), show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="How long the load is kept up.")
@click.option("--pairs", type=click.IntRange(1), help="Counted rounds.  [default: 3; of transit 1]")
@click.option("--transit", is_flag=True, help="Instead: how long instances are on their way at 50 a second.")
@with_options(PLACES, OUTPUT)
def forward(size: tuple[int, ...], seconds: float, pairs: int | None, transit: bool, **values: Any) -> None:
    """Node to node with fsync on both sides, and others that forward to the same node."""
    works = (
        [workloads.transit(seconds)] if transit else [workloads.forwarding(each, seconds) for each in size]
    )
    _run_parts([_paired(work, pairs) for work in works], values)


@main.command()
@click.option("--associations", default=suite.IDLE_ASSOCIATIONS, show_default=True)
@with_options(PLACES, OUTPUT)
def idle(associations: int, **values: Any) -> None:
    """Associations that say nothing, alone and beside four busy ones."""
    with suite.places(values["memory"], values["disk"]) as where:
        found = {**_bare(where), "idle": suite.idle_beside(where, associations)}
    _finish(judged.complete(found), values["json_path"], values["plots_folder"])


@main.command()
@click.option("--size", type=Bytes(), multiple=True, default=("8K", "512K"), show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="How long each size is kept up.")
@with_options(PLACES, OUTPUT)
def path(size: tuple[int, ...], seconds: float, **values: Any) -> None:
    """Measure the whole path with fsync: listeners, queue, persist worker and ledger."""
    with suite.places(values["memory"], values["disk"]) as where, suite.Watch(Console()) as watch:
        found = {
            **_bare(where),
            "path": [
                one for each in size for one in suite.sustained(where, watch, suite.path_load(each), seconds)
            ],
        }
    _finish(judged.complete(found), values["json_path"], values["plots_folder"])


@main.command()
@click.option("--browsers", "count", default=50, show_default=True, type=click.IntRange(1, 100))
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--per-second", default=0.0, help="Instances a second.  [default: as fast as answers come]")
@with_options(LOAD, PLACES)
def browsers(count: int, rounds: int, per_second: float, **values: Any) -> None:
    """Measure what open pages of the web console cost reception."""
    work = replace(load_of(values), per_second=per_second)
    with suite.places(values["memory"], values["disk"]) as where:
        found = measure_browsers(where.memory / "data", where.keys, work, browsers=count, rounds=rounds)
    report.console().print(report.browsers_table(found))


@main.command(name="instructions")
def count_instructions() -> None:
    """Count the instructions of parsing fixed streams (valgrind)."""
    report.console().print(report.instructions_table(instructions.as_values(instructions.count_all())))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def micro(arguments: tuple[str, ...]) -> None:
    """Time ext/ piece by piece; ARGUMENTS go to pytest, such as --benchmark-autosave."""
    script = Path(__file__).with_name("micro.py")
    plugin = ["-p", "pytest_benchmark.plugin"]
    sys.exit(
        pytest.main([str(script), "-q", *plugin, "--benchmark-only", "--benchmark-disable-gc", *arguments])
    )


@main.command(name="plot")
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def draw(results: Path, folder: Path) -> None:
    """Draw the plots and the page of RESULTS (JSON) into FOLDER again, and print its tables."""
    found = judged.complete(report.read(results))
    report.show(found, report.console())
    _publish(found, folder)


def _paired(work: Work, pairs: int | None) -> Work:
    return workloads.with_pairs(work, pairs) if pairs else work


def _bare(where: suite.Places) -> dict[str, Any]:
    return {"machine": suite.machine_of(where), "works": []}


def _run_parts(works: list[Work], values: dict[str, Any]) -> None:
    folders = {name: values[name] for name in ("memory", "disk")}
    _measure(works, folders, values["json_path"], values["plots_folder"])


def _measure(
    works: list[Work],
    folders: dict[str, Path | None],
    json_path: Path | None,
    plots_folder: Path | None,
    **how: Any,
) -> None:
    with suite.places(**folders) as where, suite.Watch(Console()) as watch:
        found = suite.measure(works, where, watch, **how)
    _finish(found, json_path, plots_folder)


def _finish(found: dict[str, Any], json_path: Path | None, plots_folder: Path | None) -> None:
    """Tables, files; exit code 1 where an acknowledged instance is not stored."""
    report.show(found, report.console())
    if json_path is not None:
        report.write(found, json_path)
        click.echo(f"figures: {json_path}")
    if plots_folder is not None:
        _publish(found, plots_folder)
    if found["lost"]:
        sys.exit(1)


def _publish(found: dict[str, Any], folder: Path) -> None:
    drawn = plots.draw(found, folder)
    markdown.write(found, folder / "README.md", drawn)
    click.echo(f"plots and a page of figures: {folder}")


def _print_result(
    result: Any, console: Console, cpu: float | None = None, missing: int | None = None
) -> None:
    table = Table("measure", "", show_header=False)
    table.add_row("instances/s", report.number(result.instances / result.seconds))
    table.add_row("MB/s", report.number(result.bytes / result.seconds / 1e6))
    for share in (0.5, 0.9, 0.99, 1.0):
        table.add_row(f"p{share * 100:g} ms", report.number(result.latency(share) * 1e3))
    table.add_row("statuses", ", ".join(f"{status:04X}H: {n}" for status, n in result.statuses.items()))
    table.add_row("operations outstanding", str(result.operations))
    table.add_row("sender's CPU s", report.number(result.sender_seconds))
    if cpu is not None:
        table.add_row("receiver's CPU s/GB", report.number(cpu / result.bytes * 1e9))
        table.add_row("receiver's CPU ms each", report.number(cpu / result.instances * 1e3))
    if missing is not None:
        table.add_row("acknowledged and not stored", str(missing))
    console.print(table)
    if result.failed or missing:
        sys.exit(1)


if __name__ == "__main__":
    main()
