"""Commands that call a remote: `ingest send` and `ingest echo`."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ingest.cli import _options as options
from ingest.cli._base import FAILED, INTERRUPTED, exit_with, load_config
from ingest.cli._tables import format_count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    from ingest.config.model import TLS
    from ingest.errors import AssociationError
    from ingest.requestor.send_files import FileResult, SendProgress, SendSummary
    from ingest.requestor.store_scu import Remote, Timeouts

MAX_REASONS: Final = 20
"""Number of different failures that are printed."""
MAX_NAMES: Final = 10
"""Number of skipped files that are printed for one reason."""


@click.command()
@options.remote_options
@click.argument("words", nargs=-1, metavar="[HOST PORT] FILES...")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Associations at a time."
)
def send(
    *,
    words: tuple[str, ...],
    path: Path | None,
    destination: str | None,
    called: str,
    calling: str,
    jobs: int,
    **tls: Any,
) -> None:
    """Store FILES and folders on a remote with C-STORE.

    \b
    ingest send pacs.example.org 11112 study/ -aec PACS
    ingest send localhost 2762 image.dcm --tls-trusted trusted.crt
    ingest send -c ingest.toml --to pacs study/

    The remote is HOST and PORT, or a destination of the configuration. No deliveries are made for the files,
    and `bandwidth_mb_per_s` does not limit them.

    Exits with 0 if all files were stored. Exits with 1 if the remote refused a file, or if a named file is
    missing, cannot be read or is no DICOM file. Files in folders that are no DICOM files are skipped and
    listed. Ctrl-C prints the counts so far and exits with 130.
    """
    if destination is not None:
        config_path = options.require_only_destination(_find_address(words), path)
        if not words:
            raise click.UsageError("name FILES or folders to send")
        exit_with(send_to_destination(config_path, destination, [*map(Path, words)], jobs))
    host, port, files = options.parse_address(words, "HOST, PORT and FILES")
    if not files:
        raise click.UsageError("name FILES or folders to send, after HOST and PORT")
    code = send_to_remote(
        host,
        port,
        tuple(map(Path, files)),
        called_ae=called,
        calling_ae=calling,
        tls=options.make_tls_settings(tls),
        jobs=jobs,
    )
    exit_with(code)


def _find_address(words: Sequence[str]) -> Sequence[str]:
    """Return the first two words if they can only be HOST and PORT, because no files have these names."""
    is_address = len(words) > 1 and words[1].isdigit()
    return words[:2] if is_address and not any(Path(word).exists() for word in words[:2]) else ()


@click.command()
@options.remote_options
@click.argument("words", nargs=-1, metavar="[HOST PORT]")
def echo(
    *,
    words: tuple[str, ...],
    path: Path | None,
    destination: str | None,
    called: str,
    calling: str,
    **tls: Any,
) -> None:
    """Test the connection to a remote with C-ECHO.

    \b
    ingest echo pacs.example.org 11112 -aec PACS
    ingest echo -c ingest.toml --to pacs

    The remote is HOST and PORT, or a destination of the configuration. Exits with 0 if it answers with
    Success, otherwise with 1.
    """
    if destination is not None:
        exit_with(echo_destination(options.require_only_destination(words, path), destination))
    host, port, more = options.parse_address(words, "HOST and PORT")
    if more:
        raise click.UsageError(f"{' '.join(more)} is too much; name HOST and PORT")
    settings = options.make_tls_settings(tls)
    exit_with(echo_remote(host, port, called_ae=called, calling_ae=calling, tls=settings))


def send_to_destination(path: Path, name: str, files: Sequence[Path], jobs: int = 1) -> int:
    """Send files and folders to a destination of a configuration; return the exit code as `send_to_remote`.

    Raises:
        ConfigError: The configuration or a TLS file that it names cannot be used.
        UnknownDestinationError: The configuration has no such destination.
    """
    from ingest.operations.remotes import find_remote

    found = find_remote(load_config(path), name)
    return _send_files(found.remote, files, jobs, found.timeouts)


def echo_destination(path: Path, name: str) -> int:
    """Send a C-ECHO to a destination of a configuration, and print the answer or the remedy.

    Returns:
        The exit code: 0 if the destination answered with Success, otherwise 1.

    Raises:
        ConfigError: The configuration or a TLS file that it names cannot be used.
        UnknownDestinationError: The configuration has no such destination.
    """
    from ingest.checks.connect import explain_failure
    from ingest.operations.remotes import find_remote

    found = find_remote(load_config(path), name)
    return _send_echo(
        found.remote,
        found.timeouts,
        lambda error: str(explain_failure(found.index, found.destination, found.remote.calling_ae, error)),
    )


def send_to_remote(
    host: str,
    port: int,
    files: Sequence[Path],
    *,
    called_ae: str,
    calling_ae: str,
    tls: "TLS | None",
    jobs: int = 1,
    timeouts: "Timeouts | None" = None,
) -> int:
    """Send files and folders, with a progress bar and a summary.

    Returns:
        The exit code: 0 if all files were stored, 1 if some were not or none was found, 130 after Ctrl-C.

    Raises:
        ConfigError: The TLS files cannot be used.
    """
    from ingest.requestor.store_scu import Remote
    from ingest.tls.contexts import build_client_context

    remote = Remote(host, port, called_ae, calling_ae, build_client_context(tls) if tls else None)
    return _send_files(remote, files, jobs, timeouts)


def _send_files(remote: "Remote", files: Sequence[Path], jobs: int, timeouts: "Timeouts | None") -> int:
    from rich.console import Console

    from ingest.requestor.send_files import send_files

    console = Console(highlight=False)
    with _make_bar(console) as bar:
        task = bar.add_task("looking for files", total=None, files="")

        def show_progress(progress: "SendProgress") -> None:
            bar.update(
                task,
                description="sending",
                completed=progress.bytes,
                total=progress.bytes_total,
                files=f"{progress.files}/{progress.files_total}",
            )

        try:
            summary = send_files(remote, files, jobs, show_progress, timeouts=timeouts)
        except KeyboardInterrupt:
            bar.stop()
            console.print("[red]interrupted twice[/red]: no counts; only the remote knows what it has stored")
            return INTERRUPTED
    _print_summary(console, remote, summary)
    if summary.is_interrupted:
        return INTERRUPTED
    return 0 if summary.results and not summary.failed_files else FAILED


def echo_remote(
    host: str,
    port: int,
    *,
    called_ae: str,
    calling_ae: str,
    tls: "TLS | None",
    timeouts: "Timeouts | None" = None,
) -> int:
    """Send a C-ECHO and print the answer.

    Returns:
        The exit code: 0 if the remote answered with Success, otherwise 1.

    Raises:
        ConfigError: The TLS files cannot be used.
    """
    from ingest.requestor.store_scu import Remote, Timeouts
    from ingest.tls.contexts import build_client_context

    remote = Remote(host, port, called_ae, calling_ae, build_client_context(tls) if tls else None)
    return _send_echo(remote, timeouts or Timeouts(), str)


def _send_echo(remote: "Remote", timeouts: "Timeouts", explain: "Callable[[AssociationError], str]") -> int:
    from rich.console import Console
    from rich.markup import escape

    from ingest.checks.connect import send_echo
    from ingest.dicom.dimse import Status
    from ingest.errors import AssociationError

    console = Console(highlight=False)
    try:
        status, _ = send_echo(remote, timeouts)
    except AssociationError as error:
        console.print(f"[red]failed[/red] {escape(explain(error))}", soft_wrap=True)
        return FAILED
    if status != Status.SUCCESS:
        console.print(f"[red]failed[/red] {escape(str(remote))} answered {status:04X}H", soft_wrap=True)
        return FAILED
    console.print(f"[green]ok[/green] {escape(str(remote))} answered the C-ECHO", soft_wrap=True)
    return 0


def _make_bar(console: "Console") -> "ProgressBar":
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[files]}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
    )


def _print_summary(console: "Console", remote: "Remote", summary: "SendSummary") -> None:
    from rich.filesize import decimal
    from rich.markup import escape

    stored, failed = len(summary.stored_files), len(summary.failed_files)
    rate = summary.stored_bytes / summary.seconds / 1e6 if summary.seconds else 0.0
    if summary.is_interrupted:
        console.print("[red]interrupted[/red]: files without an answer count as failed")
    if not summary.results and summary.is_interrupted:
        console.print("nothing was sent")
    elif not summary.results:
        console.print("[red]nothing to send[/red]: no DICOM Part 10 file was found")
    else:
        color = "red" if failed else "green"
        console.print(
            f"[{color}]{stored} of {stored + failed} stored[/{color}] by {escape(str(remote))}"
            + (
                f": {decimal(summary.stored_bytes)} in {summary.seconds:.1f} s ({rate:.1f} MB/s)"
                if stored
                else ""
            ),
            soft_wrap=True,
        )
    _print_results(console, "[red]failed[/red]", summary.failed_files)
    _print_results(console, "[yellow]stored with a warning[/yellow]", summary.warned_files)
    if summary.skipped_files:
        console.print(f"skipped {format_count(len(summary.skipped_files), 'file')} in folders:")
        _print_skipped(console, summary.skipped_files)


def _print_skipped(console: "Console", files: "Sequence[FileResult]") -> None:
    from rich.markup import escape

    for reason, count, _ in _group_by_reason(files)[:MAX_REASONS]:
        names = [str(each.path) for each in files if each.error == reason]
        console.print(f"  {escape(reason)} ({count}):", soft_wrap=True)
        for name in names[:MAX_NAMES]:
            console.print(f"    {escape(name)}", soft_wrap=True)
        if count > MAX_NAMES:
            console.print(f"    and {count - MAX_NAMES} more")


def _print_results(console: "Console", label: str, results: "Iterable[FileResult]") -> None:
    from rich.markup import escape

    grouped = _group_by_reason(list(results))
    for reason, count, example in grouped[:MAX_REASONS]:
        others = f" and {count - 1} more" if count > 1 else ""
        console.print(f"{label} {escape(str(example))}{others}: {escape(reason)}", soft_wrap=True)
    if len(grouped) > MAX_REASONS:
        console.print(f"{label} for {len(grouped) - MAX_REASONS} more reasons")


def _group_by_reason(results: "Sequence[FileResult]") -> list[tuple[str, int, Path]]:
    """Return each reason with its number of files and one of them, the most frequent reason first."""
    counts = Counter(result.error for result in results)
    example = {result.error: result.path for result in reversed(results)}
    return [(reason, count, example[reason]) for reason, count in counts.most_common()]
