"""The demo: real DICOM files go through two nodes on this machine, and every byte is compared.

Sender → TLS → node (spool, queue, store, ledger) → TLS → remote node. Everything is in one temporary folder.
The demo removes the folder at the end. After a failure it keeps the folder and prints its path.

With `--keep` both nodes run on until Ctrl-C, for a person who wants to look around. Each node has a session
of its own: a terminal sends Ctrl-C and its own end to the demo alone, and the demo ends the nodes. If the
demo is killed, the kernel ends them.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import IO, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ingest import threads
from ingest.acceptor.header_check import SUCCESS, check_header
from ingest.cli._demo_keep import choose_console, keep_running
from ingest.config.model import TLS, Config, ReceiveSettings
from ingest.config.reader import load_config
from ingest.dicom.padding import has_odd_value
from ingest.dicom.part10 import read_file_meta
from ingest.dicom.uids import DEFLATED
from ingest.errors import DemoError, IngestError, LedgerError
from ingest.ledger import Counts, DeliveryState, InstanceState, Ledger
from ingest.process import prepare_parent_death_signal
from ingest.requestor.send_files import SendableFile, SendSummary, find_files, send_files
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from ingest.tls.keys import pairs

READY_SECONDS: Final = 30.0
ARRIVE_SECONDS: Final = 120.0
STOP_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.1
JOBS: Final = 4
CHUNK: Final = 1 << 20
STATES: Final = (InstanceState.STORED, InstanceState.VARIANT, InstanceState.QUARANTINED)

NODE: Final = """
[node]
ae_title = "{ae_title}"
data_dir = "var"
[[listeners]]
host = "127.0.0.1"
port = 0
tls = "node"
[tls.node]
certificate = "../pki/{name}.crt"
private_key = "../pki/{name}.key"
trusted = ["../pki/trusted.crt"]
[receive]
processes = 2
"""
DESTINATION: Final = """
[[destinations]]
name = "remote"
ae_title = "REMOTE"
host = "localhost"
port = {port}
tls = "node"
[[routes]]
to = ["remote"]
"""


@dataclass(slots=True)
class DemoNode:
    """A running node of the demo."""

    name: str
    config: Config
    process: subprocess.Popen[str]
    port: int


def run_demo(*, keep: bool = False) -> int:
    """Run the demo in the terminal, and return the exit code.

    Args:
        keep: Let both nodes run until Ctrl-C, and say where to look.
    """
    console = Console(highlight=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores the end of the terminal
            signal.signal(number, _interrupt)
    # The name has spaces: no command of a node may stumble over them. With --keep a person types it.
    folder = Path(tempfile.mkdtemp(prefix="dicom-ingest-demo-" if keep else "dicom-ingest demo "))
    try:
        _send_through_nodes(console, folder, keep=keep)
    except IngestError as error:
        console.print(f"[red]The demo failed:[/] {escape(str(error))}", soft_wrap=True)
        console.print(f"Its files are in {escape(str(folder))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _interrupt(*_: object) -> None:
    """End the demo as Ctrl-C does: signals would otherwise leave the nodes and the folder."""
    raise KeyboardInterrupt


def _send_through_nodes(console: Console, folder: Path, *, keep: bool) -> None:
    console.print("Creating a demo PKI: three self-signed certificates that trust each other …")
    tls = _make_pki(folder / "pki")
    found = _find_demo_files()
    console.print(f"{len(found)} real DICOM files of pydicom, of {len({f.context for f in found})} kinds")
    with contextlib.ExitStack() as stack:
        remote = stack.enter_context(_run_node(folder, "remote", ""))
        more = DESTINATION.format(port=remote.port)
        if keep:
            more += choose_console()
        node = stack.enter_context(_run_node(folder, "node", more))
        console.print(f"Two nodes accept TLS: INGEST on port {node.port}, REMOTE on port {remote.port}")
        started = time.monotonic()
        summary = _send_and_watch(console, node, remote, found, tls)
        seconds = time.monotonic() - started
        compared = _compare_store(found, node), _compare_store(found, remote)
        _print_report(console, summary, found, compared, seconds)
        if keep:
            keep_running(console, folder, node, remote)
            console.print("Stopping both nodes …")


def _make_pki(folder: Path) -> TLS:
    folder.mkdir(parents=True)
    for name in ("node", "remote", "sender"):
        pair = pairs.issue_self_signed(name, names=["localhost", "127.0.0.1"])
        pairs.write_pair(pair, folder / name)
        pairs.add_to_bundle(pair.certificate, folder / "trusted.crt")
    return TLS(
        certificate=folder / "sender.crt",
        private_key=folder / "sender.key",
        trusted=(folder / "trusted.crt",),
    )


def _find_demo_files() -> list[SendableFile]:
    """Return one of pydicom's files for each SOP Instance UID.

    A file is left out if its data set has another transfer syntax than its File Meta says: every node refuses
    it. A data set of odd length is left out too. The sender pads it, and the copies differ.
    """
    packages = [Path(str(files("pydicom"))) / "data"]
    with contextlib.suppress(ModuleNotFoundError):
        packages.append(Path(str(files("data_store"))) / "data")
    found, _, _ = find_files(packages)
    return list({item.sop_instance_uid: item for item in found if _is_usable(item)}.values())


def _is_usable(item: SendableFile) -> bool:
    if has_odd_value(item.size, item.transfer_syntax_uid):
        return False
    with item.path.open("rb") as file:
        verdict = check_header(
            file.fileno(),
            item.offset,
            item.size,
            transfer_syntax=item.transfer_syntax_uid,
            sop_class=item.sop_class_uid,
            sop_instance=item.sop_instance_uid,
            header_max_bytes=ReceiveSettings().header_max_bytes,
        )
    return verdict == SUCCESS


@contextlib.contextmanager
def _run_node(folder: Path, name: str, more: str) -> Iterator[DemoNode]:
    home = folder / name
    home.mkdir()
    path = home / "ingest.toml"
    path.write_text(NODE.format(name=name, ae_title="INGEST" if name == "node" else "REMOTE") + more)
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest.cli", "serve", "-c", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            preexec_fn=prepare_parent_death_signal(signal.SIGTERM),  # noqa: PLW1509 - no threads here
        )
    try:
        port = _read_port(process, home / "log")
        yield DemoNode(name, load_config(path), process, port)
    finally:
        process.terminate()
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if code:
        raise DemoError(f"the node {name} ended with {code}; see {home / 'log'}")


def _read_port(process: subprocess.Popen[str], log: Path) -> int:
    """Return the port from the `ready` line that the node prints."""
    lines: list[str] = []

    def read(stream: IO[str]) -> None:
        lines.append(stream.readline())

    if process.stdout is None:
        raise DemoError("the node has no standard output")
    reader = threads.start_task("reader", partial(read, process.stdout))
    reader.join(READY_SECONDS)
    if not lines or not lines[0].startswith("ready"):
        raise DemoError(f"the node is not ready after {READY_SECONDS:.0f} s; see {log}")
    return int(lines[0].split()[1].rpartition(":")[2])


def _send_and_watch(
    console: Console, node: DemoNode, remote: DemoNode, found: list[SendableFile], tls: TLS
) -> SendSummary:
    target = Remote("localhost", node.port, "INGEST", "DEMO", build_client_context(tls))
    paths = [item.path for item in found]
    results: list[SendSummary] = []
    with Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as bars:
        sent = bars.add_task("sent, answered with Success", total=len(paths))
        stages = {
            "stored": bars.add_task("in store and ledger of the node", total=len(paths)),
            "delivered": bars.add_task("delivered, says the node", total=len(paths)),
            "arrived": bars.add_task("in store and ledger of the remote", total=len(paths)),
        }
        sender = threads.start_task(
            "sender",
            lambda: results.append(
                send_files(target, paths, JOBS, lambda p: bars.update(sent, completed=p.files))
            ),
        )
        with (
            contextlib.closing(Ledger(node.config.ledger_url)) as here,
            contextlib.closing(Ledger(remote.config.ledger_url)) as there,
        ):
            deadline = time.monotonic() + ARRIVE_SECONDS
            while True:
                refused = bool(results) and bool(results[0].failed_files)
                counts = _count_progress(here, there)
                for stage, count in counts.items():
                    bars.update(stages[stage], completed=count)
                if refused or min(counts.values()) >= len(paths) or time.monotonic() > deadline:
                    break
                time.sleep(POLL_SECONDS)
        sender.join(STOP_SECONDS)
    if not results:
        raise DemoError("the sender did not end")
    if results[0].failed_files:
        first = results[0].failed_files[0]
        raise DemoError(f"{len(results[0].failed_files)} files failed, the first {first.path}: {first.error}")
    if min(counts.values()) < len(paths):
        raise DemoError(f"after {ARRIVE_SECONDS:.0f} s only {counts} of {len(paths)} arrived")
    return results[0]


def _count_progress(node: Ledger, remote: Ledger) -> dict[str, int]:
    """Count the instances that have reached each stage."""
    here, there = _count_rows(node), _count_rows(remote)
    return {
        "stored": sum(here.instances.get(state, 0) for state in STATES),
        "delivered": here.deliveries.get("remote", {}).get(DeliveryState.DELIVERED, 0),
        "arrived": sum(there.instances.get(state, 0) for state in STATES),
    }


def _count_rows(ledger: Ledger) -> Counts:
    try:
        return ledger.count_rows()
    except LedgerError:  # not created yet: a node accepts associations before its workers have started
        return Counts({}, {})


def _compare_store(found: list[SendableFile], running: DemoNode) -> int:
    """Compare each data set in the store of a node with the file that was sent. Return the compared bytes."""
    total = 0
    with contextlib.closing(Ledger(running.config.ledger_url)) as ledger:
        for item in found:
            rows = ledger.instances.find_by_sop_instance_uid(item.sop_instance_uid)
            if len(rows) != 1:
                raise DemoError(f"{running.name} has {len(rows)} rows for {item.sop_instance_uid}")
            path = running.config.store_root / rows[0].store_key
            total += _compare_file(item, path)
    return total


def _compare_file(item: SendableFile, path: Path) -> int:
    with item.path.open("rb") as sent, path.open("rb") as kept:
        meta, offset = read_file_meta(kept.fileno())
        sent.seek(item.offset)
        kept.seek(offset)
        total = 0
        while True:
            a, b = sent.read(CHUNK), kept.read(CHUNK)
            if len(a) % 2 and item.transfer_syntax_uid in DEFLATED:
                a += b"\0"  # PS3.5 A.5: on the wire a deflate stream is padded
            if a != b or meta.transfer_syntax_uid != item.transfer_syntax_uid:
                raise DemoError(f"{path} differs from {item.path}")
            total += len(a)
            if not a:
                return total


def _print_report(
    console: Console,
    summary: SendSummary,
    found: list[SendableFile],
    compared: tuple[int, int],
    seconds: float,
) -> None:
    table = Table(show_header=False, title="Result")
    table.add_row(
        "sent over mutual TLS", f"{len(summary.stored_files)} instances, {summary.stored_bytes / 1e6:.1f} MB"
    )
    table.add_row("kinds (SOP class, transfer syntax)", str(len({item.context for item in found})))
    table.add_row("compared byte for byte in the node", f"{compared[0]:,} bytes, all equal")
    table.add_row("compared byte for byte in the remote", f"{compared[1]:,} bytes, all equal")
    table.add_row("first byte sent to last one kept remotely", f"{seconds:.1f} s")
    table.add_row(
        "rate of the whole path", f"{len(found) / seconds:.0f}/s, {compared[1] / seconds / 1e6:.1f} MB/s"
    )
    console.print(table)
