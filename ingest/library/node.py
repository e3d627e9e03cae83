"""A node for tests of other programs: its processes are children of the program that starts it."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from ingest import threads
from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.config.serialization import format_values_as_toml
from ingest.errors import LedgerError, NodeError
from ingest.library.ledger import Ledger
from ingest.library.records import InstanceRecord

if TYPE_CHECKING:
    from ingest.library.sending import Remote

POLL_SECONDS: Final = 0.05
LOG_TAIL: Final = 2000
"""Characters of the log that an error quotes."""

_PROGRAM: Final = """
import signal, sys
from ingest.process import prepare_parent_death_signal
parent = int(sys.argv.pop(1))
if parent:
    prepare_parent_death_signal(signal.SIGTERM, parent)()
from ingest.cli import main
main(prog_name="ingest")
"""
"""The child itself asks for the signal: code between fork and exec is not safe in a program with threads."""

_ADDRESS: Final = re.compile(r"(dicom(?:-tls)?)://(\S+):(\d+)")
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "node": {"data_dir": "var"},
    "receive": {"processes": 1},
    "workers": {"persist": 1, "forward": 1},
    "log": {"format": "json"},
}
"""What a mapping leaves out, for a small node that starts fast. The defaults of a file are another matter."""

_LISTENER: Final = {"host": "127.0.0.1", "port": 0, "tls": False}


@dataclass(frozen=True, slots=True)
class Address:
    """A listener of a running node.

    Attributes:
        host: Address that it is bound to.
        port: TCP port, also if the configuration left it to the kernel.
        is_tls: Whether it wants TLS.
    """

    host: str
    port: int
    is_tls: bool


class Node:
    """A node that runs while a `with` block runs.

    The node is the same as that of `ingest serve`, with all its processes. They are children of this process,
    and end with it. Its files are in a temporary folder, unless the configuration or `folder` names another
    one. A node can be stopped and started again; its data stay until the block ends.

    Example:
        with ingest.Node({"node": {"ae_title": "STORE"}}) as node:
            export_study(host="127.0.0.1", port=node.port, called_ae="STORE")
            [instance] = node.wait_for_instances(1)
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        ready_seconds: float = 30.0,
        stop_seconds: float = 60.0,
    ) -> None:
        """Prepare. `start`, or the begin of a `with` block, starts the node.

        Args:
            config: The sections of a configuration as a mapping, a configuration, or its file. A mapping may
                leave out everything: a listener on a free port of this host alone, without TLS, is added if
                there is none, and data are kept in the folder. None is an empty mapping.
            folder: Folder of the log, and of everything that a mapping leaves out. It must exist, and stays.
                None makes a temporary folder, which the end of the block removes.
            ready_seconds: How long the node may take until it accepts associations.
            stop_seconds: How long it may take to end.
        """
        self._given = config
        self._wanted_folder = folder
        self._ready_seconds = ready_seconds
        self._stop_seconds = stop_seconds
        self._folder: Path | None = None
        self._config: Config | None = None
        self._process: subprocess.Popen[str] | None = None
        self._addresses: tuple[Address, ...] = ()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove_folder()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            code = self.stop()
            if code and kind is None:
                raise NodeError(f"the node ended with {code}: {self._read_log_end()}")
        finally:
            self._remove_folder()

    # --- start and stop

    def start(self) -> None:
        """Start the node, and wait until it accepts associations.

        Raises:
            ConfigError: The configuration has faults.
            NodeError: The node ended, or is not ready in time. The message has the end of its log.
        """
        if self.is_running:
            return
        self._forget_process()  # one that has ended by itself
        path = self._write_config()
        self._config = load_config(path, roles=("listen",))
        # A parent-death signal follows the thread that forks, so another thread must do without.
        in_main_thread = threading.current_thread() is threading.main_thread()
        parent = os.getpid() if in_main_thread else 0
        with self.log_path.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(parent), "serve", "-c", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_make_environment(),
            )
        try:
            self._addresses = _parse_addresses(self._read_ready_line())
        except BaseException:
            self.kill()
            raise

    def stop(self) -> int:
        """Let running associations end, stop the node, and return its exit code; 0 if it does not run.

        Raises:
            NodeError: The node did not end in time, and was killed.
        """
        process = self._process
        if process is None:
            return 0
        process.terminate()
        try:
            code = process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NodeError(
                f"the node did not stop within {self._stop_seconds:.0f} s: {self._read_log_end()}"
            ) from None
        self._forget_process()
        return code

    def kill(self) -> None:
        """Kill the node, as a power failure would. `start` starts it again on the same data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget_process()

    @property
    def is_running(self) -> bool:
        """Whether the node runs."""
        return self._process is not None and self._process.poll() is None

    # --- where it is

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Its listeners, in the order of the configuration."""
        return self._addresses

    @property
    def host(self) -> str:
        """Address of its first listener."""
        return self._first_address.host

    @property
    def port(self) -> int:
        """TCP port of its first listener."""
        return self._first_address.port

    @property
    def config(self) -> Config:
        """Its configuration.

        Raises:
            NodeError: The node was not started yet.
        """
        if self._config is None:
            raise NodeError("the node was not started yet; use it in a `with` block, or call start()")
        return self._config

    @property
    def store(self) -> Path:
        """Folder of the stored instances."""
        return self.config.store_root

    @property
    def log_path(self) -> Path:
        """File with the log of its processes."""
        return self._require_folder() / "node.log"

    @property
    def remote(self) -> "Remote":
        """Its first listener, as a destination of `send`.

        Raises:
            NodeError: The listener wants TLS. Make a `Remote` with the keys of the sender then.
        """
        from ingest.library.sending import Remote  # noqa: PLC0415 - sending imports this module

        address = self._first_address
        if address.is_tls:
            raise NodeError("the first listener wants TLS; name a Remote(host, port, …, tls=TLS(…))")
        return Remote(address.host, address.port, self.config.node.ae_title)

    # --- what it has

    def open_ledger(self) -> Ledger:
        """Open the ledger of the node; use it in a `with` block.

        Raises:
            LedgerError: The node has not made its ledger yet.
        """
        return Ledger(self.config)

    def wait_for_instances(self, count: int, *, seconds: float = 10.0) -> list[InstanceRecord]:
        """Wait until the node has recorded a number of instances, and return all of them, oldest first.

        Args:
            count: At least so many, in any state.
            seconds: How long to wait.

        Raises:
            TimeoutError: There are fewer.
        """
        return self._wait_for(self._list_instances, count, seconds, "recorded")

    def wait_for_deliveries(self, count: int, *, seconds: float = 10.0) -> list[InstanceRecord]:
        """Wait until a number of instances was delivered to all their destinations, and return them.

        Args:
            count: At least so many.
            seconds: How long to wait.

        Raises:
            TimeoutError: There are fewer.
        """
        return self._wait_for(self._list_delivered, count, seconds, "delivered")

    def _list_instances(self) -> list[InstanceRecord]:
        try:
            with self.open_ledger() as ledger:
                return list(ledger.instances())[::-1]
        except LedgerError:  # it accepts associations before its workers have made the ledger
            return []

    def _list_delivered(self) -> list[InstanceRecord]:
        return [
            one
            for one in self._list_instances()
            if one.deliveries and all(state.value == "delivered" for state in one.deliveries.values())
        ]

    def _wait_for(
        self, find: Callable[[], list[InstanceRecord]], count: int, seconds: float, verb: str
    ) -> list[InstanceRecord]:
        deadline = time.monotonic() + seconds
        while True:
            found = find()
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(found)} of {count} instances were {verb} within {seconds:.0f} s: "
                    f"{self._read_log_end()}"
                )
            time.sleep(POLL_SECONDS)

    # --- parts

    @property
    def _first_address(self) -> Address:
        if not self._addresses:
            raise NodeError("the node does not run; use it in a `with` block, or call start()")
        return self._addresses[0]

    def _require_folder(self) -> Path:
        if self._folder is None:
            given = self._wanted_folder
            self._folder = Path(given or tempfile.mkdtemp(prefix="dicom-ingest-")).absolute()
        return self._folder

    def _write_config(self) -> Path:
        folder, given = self._require_folder(), self._given
        if isinstance(given, str | os.PathLike):
            return Path(given)
        values = _complete(_dump(given) if isinstance(given, Config) else given or {})
        path = folder / "node.toml"
        # It may have passwords.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(format_values_as_toml(values))
        return path

    def _read_ready_line(self) -> str:
        lines: list[str] = []
        process = self._process
        if process is None or process.stdout is None:
            raise NodeError("the node has no standard output")
        reader = threads.start_task("node-ready", partial(_read_line, process.stdout, lines))
        reader.join(self._ready_seconds)
        if lines and lines[0].startswith("ready"):
            return lines[0]
        if not lines:
            raise NodeError(
                f"the node is not ready after {self._ready_seconds:.0f} s: {self._read_log_end()}"
            )
        code = process.wait(self._stop_seconds)
        raise NodeError(f"the node ended with {code}: {self._read_log_end()}")

    def _read_log_end(self) -> str:
        with contextlib.suppress(OSError):
            return self.log_path.read_text(errors="replace")[-LOG_TAIL:].strip()
        return ""

    def _forget_process(self) -> None:
        process, self._process, self._addresses = self._process, None, ()
        if process is not None and process.stdout is not None:
            process.stdout.close()

    def _remove_folder(self) -> None:
        if self._folder is not None and self._wanted_folder is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _dump(config: Config) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude_none=True)
    if config.data_dir == Config().data_dir:
        del values["node"]["data_dir"]
    return values


def _complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """Add what a mapping leaves out."""
    values = {name: deepcopy(section) for name, section in given.items() if section is not None}
    for name, defaults in _DEFAULTS.items():
        section = values.get(name, {})
        values[name] = {**defaults, **section} if isinstance(section, Mapping) else section
    if not values.get("listeners"):
        values["listeners"] = [_LISTENER]
    return values


def _make_environment() -> dict[str, str]:
    """Let the node import the same package as this process, wherever that comes from."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _read_line(stream: IO[str], lines: list[str]) -> None:
    # Closing the stream ends the wait of a node that was never ready.
    with contextlib.suppress(ValueError, OSError):
        lines.append(stream.readline())


def _parse_addresses(line: str) -> tuple[Address, ...]:
    return tuple(
        Address(host.strip("[]"), int(port), scheme == "dicom-tls")
        for scheme, host, port in _ADDRESS.findall(line)
    )
