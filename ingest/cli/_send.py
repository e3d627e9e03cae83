"""`ingest send` and `ingest echo`: what a person sees of the sender."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from ingest.checks.connect import echo
from ingest.config.model import TLS
from ingest.dicom.dimse import Status
from ingest.errors import AssociationError
from ingest.requestor.send_files import FileResult, SendProgress, SendSummary, send_files
from ingest.requestor.store_scu import Remote, Timeouts
from ingest.tls.contexts import client_context

__all__ = ["FileResult", "SendProgress", "SendSummary", "echo_command", "send_command", "send_files"]

REASONS_SHOWN: Final = 20
NAMES_SHOWN: Final = 10
"""Skipped files of one reason that are named; the others are counted."""

INTERRUPTED_EXIT: Final = 130
"""128 and the number of SIGINT, as shells have it."""


def send_command(
    host: str,
    port: int,
    files: Sequence[Path],
    *,
    called_ae: str,
    calling_ae: str,
    tls: TLS | None,
    jobs: int = 1,
    timeouts: Timeouts | None = None,
) -> int:
    """`ingest send`: C-STORE files and folders, with a progress bar and a summary.

    Returns:
        The exit code: 0 all stored, 1 some failed, or nothing was there to send; 130 after Ctrl-C.

    Raises:
        ConfigError: The TLS files cannot be used.
    """
    console = Console(highlight=False)
    remote = Remote(host, port, called_ae, calling_ae, client_context(tls) if tls else None)
    with _bar(console) as bar:
        task = bar.add_task("looking for files", total=None, files="")

        def show(progress: SendProgress) -> None:
            bar.update(
                task,
                description="sending",
                completed=progress.bytes,
                total=progress.bytes_total,
                files=f"{progress.files}/{progress.files_total}",
            )

        try:
            summary = send_files(remote, files, jobs, show, timeouts=timeouts)
        except KeyboardInterrupt:
            bar.stop()
            console.print("[red]interrupted twice[/red]: without counts; only the remote knows what it has")
            return INTERRUPTED_EXIT
    _summarise(console, remote, summary)
    if summary.is_interrupted:
        return INTERRUPTED_EXIT
    return 0 if summary.results and not summary.failed_files else 1


def echo_command(
    host: str,
    port: int,
    *,
    called_ae: str,
    calling_ae: str,
    tls: TLS | None,
    timeouts: Timeouts | None = None,
) -> int:
    """`ingest echo`: C-ECHO.

    Returns:
        The exit code: 0 the remote answered with success, 1 it did not; why is said.

    Raises:
        ConfigError: The TLS files cannot be used.
    """
    console = Console(highlight=False)
    remote = Remote(host, port, called_ae, calling_ae, client_context(tls) if tls else None)
    try:
        status, _ = echo(remote, timeouts or Timeouts())
    except AssociationError as error:
        console.print(f"[red]failed[/red] {escape(str(error))}", soft_wrap=True)
        return 1
    if status != Status.SUCCESS:
        console.print(f"[red]failed[/red] {escape(str(remote))} answered {status:04X}H", soft_wrap=True)
        return 1
    console.print(f"[green]ok[/green] {escape(str(remote))} answered the C-ECHO", soft_wrap=True)
    return 0


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[files]}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
    )


def _summarise(console: Console, remote: Remote, summary: SendSummary) -> None:
    stored, failed = len(summary.stored_files), len(summary.failed_files)
    rate = summary.stored_bytes / summary.seconds / 1e6 if summary.seconds else 0.0
    if summary.is_interrupted:
        console.print("[red]interrupted[/red]: what has no answer by now counts as failed")
    if not summary.results and summary.is_interrupted:
        console.print("nothing was sent")
    elif not summary.results:
        console.print("[red]nothing to send[/red]: no DICOM Part 10 file was found")
    else:
        color = "red" if failed else "green"
        console.print(
            f"[{color}]{stored} of {stored + failed} stored[/{color}] by {escape(str(remote))}: "
            f"{decimal(summary.stored_bytes)} in {summary.seconds:.1f} s ({rate:.1f} MB/s)",
            soft_wrap=True,
        )
    _list(console, "[red]failed[/red]", summary.failed_files)
    _list(console, "[yellow]stored with a warning[/yellow]", summary.warned_files)
    if len(summary.skipped_files):
        console.print(f"skipped {len(summary.skipped_files)} files in folders that are not to be stored:")
        _list_skipped(console, summary.skipped_files)


def _list_skipped(console: Console, files: Sequence[FileResult]) -> None:
    for reason, count, _ in _grouped(files)[:REASONS_SHOWN]:
        names = [str(each.path) for each in files if each.error == reason]
        console.print(f"  {escape(reason)} ({count}):", soft_wrap=True)
        for name in names[:NAMES_SHOWN]:
            console.print(f"    {escape(name)}", soft_wrap=True)
        if count > NAMES_SHOWN:
            console.print(f"    and {count - NAMES_SHOWN} more")


def _list(console: Console, label: str, results: Iterable[FileResult]) -> None:
    grouped = _grouped(list(results))
    for reason, count, example in grouped[:REASONS_SHOWN]:
        others = f" and {count - 1} more" if count > 1 else ""
        console.print(f"{label} {escape(str(example))}{others}: {escape(reason)}", soft_wrap=True)
    if len(grouped) > REASONS_SHOWN:
        console.print(f"{label} for {len(grouped) - REASONS_SHOWN} more reasons")


def _grouped(results: Sequence[FileResult]) -> list[tuple[str, int, Path]]:
    """Remarks grouped: each with how many files it is about and one of them, the most frequent first."""
    counts = Counter(result.error for result in results)
    example = {result.error: result.path for result in reversed(results)}
    return [(reason, count, example[reason]) for reason, count in counts.most_common()]
