"""The end of `ingest demo --keep`: say where to look and what to try, and wait for Ctrl-C."""

import contextlib
import http.client
import shlex
import socket
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pydicom
from rich.console import Console

from ingest.cli._program import name_program
from ingest.config.model import ConsoleSettings
from ingest.errors import DemoError
from ingest.extras import find_missing_modules

if TYPE_CHECKING:
    from ingest.cli._demo_run import DemoNode

CONSOLE_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.1
WATCH_SECONDS: Final = 0.5
CONSOLE_PORT: Final = 8080
"""Port of the console, if it is free."""

CONSOLE: Final = """
[console]
host = "127.0.0.1"
port = {port}
"""
SENDER: Final = """
# The sender of the demo: ingest send -c sender.toml --to node FILES
[node]
ae_title = "DEMO"
[tls.node]
certificate = "pki/sender.crt"
private_key = "pki/sender.key"
trusted = ["pki/trusted.crt"]
[[destinations]]
name = "node"
ae_title = "INGEST"
host = "localhost"
port = {port}
"""


def choose_console() -> str:
    """Return the section of the node's console on a free port, or nothing if no console is installed."""
    return CONSOLE.format(port=_choose_port(CONSOLE_PORT)) if not find_missing_modules("console") else ""


def keep_running(console: Console, folder: Path, node: "DemoNode", remote: "DemoNode") -> None:
    """Print a guide to two running nodes, and wait for Ctrl-C.

    Raises:
        DemoError: The console does not answer, or a node ends by itself.
    """
    (folder / "sender.toml").write_text(SENDER.format(port=node.port))
    _write_another_file(folder / "another.dcm")
    if node.config.console is not None:
        _wait_for_console(node.config.console)
    _print_guide(console, folder, node)
    _watch_nodes(node, remote)


def _choose_port(wanted: int) -> int:
    """Return `wanted` if it is free, otherwise another free port."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise DemoError("no port is free for the console")


def _write_another_file(path: Path) -> None:
    """Write a file that no node has yet: one of pydicom's with another SOP Instance UID."""
    data_set = pydicom.dcmread(str(files("pydicom") / "data" / "test_files" / "CT_small.dcm"))
    data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data_set.save_as(path)


def _wait_for_console(settings: ConsoleSettings) -> None:
    """Wait until the console answers; it starts after the listeners."""
    deadline = time.monotonic() + CONSOLE_SECONDS
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", settings.port, timeout=5.0)
            ) as connection,
        ):
            connection.request("GET", "/live")
            connection.getresponse()
            return
        time.sleep(POLL_SECONDS)
    raise DemoError(f"the console does not answer within {CONSOLE_SECONDS:.0f} s")


def _print_guide(console: Console, folder: Path, node: "DemoNode") -> None:
    """Print where to look and what to try. Every line of a command can be pasted."""
    program, settings = name_program(), node.config.console
    sender, another = (shlex.quote(str(folder / name)) for name in ("sender.toml", "another.dcm"))
    lines = ["Both nodes run on. Look at"]
    if settings is not None:
        from ingest.console.auth.tokens import read_local_token

        lines.append(f"  console  http://{settings.host}:{settings.port}/")
        lines.append(f"  token    {read_local_token(node.config.console_dir)}")
    lines += (
        f"  store    {node.config.store_root}",
        "Try in another terminal",
        f"  export INGEST_CONFIG={shlex.quote(str(folder / 'node' / 'ingest.toml'))}",
        f"  {program} status",
        f"  {program} studies",
        f"  {program} echo -c {sender} --to node",
        f"  {program} send -c {sender} --to node {another}",
        f"  {program} deliveries --limit 3",
        f"Ctrl-C stops both nodes and removes {folder}",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _watch_nodes(*nodes: "DemoNode") -> None:
    """Wait for Ctrl-C.

    Raises:
        DemoError: A node has ended by itself.
    """
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for each in nodes:
                if each.process.poll() is not None:
                    raise DemoError(f"the node {each.name} ended by itself")
            time.sleep(WATCH_SECONDS)
