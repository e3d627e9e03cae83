"""Real nodes for tests: `ingest serve` as a process of its own, with folders and ports of its own."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ingest.spool import segment
from tests.support.pki import Material
from tests.support.ports import free_port

READY = re.compile(r"(dicom(?:-tls)?)://(\S+):(\d+)")


def eventually(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """The first true value of `condition`; fails when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)


@dataclass
class Node:
    """One node: its folder, configuration and process.

    Attributes:
        folder: Holds `ingest.toml`, `var/` and `log`.
        sections: TOML text of further sections, or of those replaced.
        program: What Python runs as the command.
        tree: The source tree whose code runs.
    """

    folder: Path
    material: Material
    sections: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[str] | None" = None
    tls_port: int = field(default_factory=free_port)
    plain_port: int = field(default_factory=free_port)
    command: tuple[str, ...] = ("serve",)
    data_folder: Path | None = None
    program: tuple[str, ...] = ("-m", "ingest.cli")
    tree: Path = Path(__file__).parents[2]

    @property
    def config_path(self) -> Path:
        return self.folder / "ingest.toml"

    @property
    def data(self) -> Path:
        return self.data_folder or self.folder / "var"

    @property
    def store(self) -> Path:
        return self.data / "store"

    @property
    def spool(self) -> Path:
        return self.data / "spool"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text() if (self.folder / "log").exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's events of that name."""
        lines = (line for line in self.log.splitlines() if line.startswith("{"))
        return [event for event in map(json.loads, lines) if event.get("event") == name]

    def configure(self, **sections: str) -> None:
        """Write the configuration; a section given replaces the one there was, and stays."""
        self.sections.update(sections)
        material = self.material
        defaults = {
            "node": '[node]\nae_title = "INGEST"\ndata_dir = "var"\ndrain_seconds = 10',
            "listeners": (
                f'[[listeners]]\nhost = "127.0.0.1"\nport = {self.tls_port}\ntls = "node"\n'
                f'[[listeners]]\nhost = "127.0.0.1"\nport = {self.plain_port}\ntls = false'
            ),
            "tls": (
                f'[tls.node]\ncertificate = "{material.certificate("node")}"\n'
                f'private_key = "{material.key("node")}"\n'
                f'trusted = ["{material.trusted}"]'
            ),
            "receive": "[receive]\nprocesses = 2\nmin_free_bytes = 0",
            "workers": "[workers]\npersist = 1\nforward = 1",
            "log": '[log]\nformat = "json"\nlevel = "debug"',
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text("\n\n".join({**defaults, **self.sections}.values()) + "\n")

    def launch(self, *command: str) -> "subprocess.Popen[str]":
        """Start `ingest COMMAND -c …` without waiting."""
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, *self.program, *command, "-c", str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(self.tree), "NO_COLOR": "1"},
            )

    def start(self, **sections: str) -> "Node":
        """Start the node and wait until it says that it is ready."""
        if sections or not self.config_path.exists():
            self.configure(**sections)
        self.process = self.launch(*self.command)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready"):
            raise AssertionError(f"not ready: {line!r} {self.process.wait(20)}\n{self.log[-4000:]}")
        for scheme, _, port in READY.findall(line):
            if scheme == "dicom-tls":
                self.tls_port = int(port)
            else:
                self.plain_port = int(port)
        # The same ports after a restart, as a site would have it.
        self.configure()
        return self

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, and the exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        return self._wait(seconds)

    def kill(self) -> None:
        """SIGKILL to the supervisor alone."""
        assert self.process is not None
        self.process.kill()
        self._wait(10)

    def _wait(self, seconds: float) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"did not stop within {seconds} s\n{self.log[-4000:]}") from None
        finally:
            assert process.stdout is not None
            process.stdout.close()

    def children(self, name: str = "") -> list[psutil.Process]:
        """The node's processes; `name` as in "ingest-listen", "ingest-forward", "valkey-server"."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith(name):
                    found.append(child)
        return found

    def kill_child(self, name: str) -> int:
        """SIGKILL to one child; returns its pid."""

        def kill_one() -> int:
            for child in self.children(name)[:1]:
                with contextlib.suppress(ProcessLookupError):  # it has ended by itself since
                    os.kill(child.pid, signal.SIGKILL)
                    return int(child.pid)
            return 0

        return int(eventually(kill_one, what=f"a child {name}"))

    # --- what it holds

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the SQLite ledger; none while there is no ledger yet."""
        path = self.data / "ledger.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
            try:
                return connection.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                # After a crash SQLite's log waits for the first writer; whoever only reads cannot recover it.
                if "no such table" in str(error) or "readonly database" in str(error):
                    return []
                raise

    def stored(self) -> dict[str, Path]:
        """SOP instance UID to file, of what ledger and store hold."""
        rows = self.query("SELECT sop_instance_uid, store_key FROM instances WHERE state = 'stored'")
        return {uid: self.store / key for uid, key in rows}

    def deliveries(self) -> dict[str, int]:
        """How many deliveries there are by state."""
        return dict(self.query("SELECT state, count(*) FROM deliveries GROUP BY state"))

    def spooled(self) -> list[Path]:
        """What waits in the spool."""
        waiting = list(self.spool.glob("L*/ready/*.dcm"))
        for path in self.spool.glob("L*/segments/*.seg"):
            with contextlib.suppress(FileNotFoundError), segment.Segment(path) as opened:
                waiting += [path.with_name(f"{path.name}#{each.offset}") for each in opened.waiting()]
        return sorted(waiting)

    def partials(self) -> list[Path]:
        """What is being received."""
        return sorted(self.spool.glob("L*/partial/*"))


def count_refusals(node: Node) -> dict[str, int]:
    """Refused connections by cause and network, as far as they are written down."""
    counts: dict[str, int] = {}
    for path in (node.data / "run" / "refusals").glob("*.json"):
        for entry in json.loads(path.read_text()):
            key = f"{entry['refusal']['cause']} {entry['network']}"
            counts[key] = counts.get(key, 0) + entry["count"]
    return counts


def destination(name: str, port: int, *, tls: bool = True, **keys: object) -> str:
    """`[[destinations]]` and a route to it, as TOML."""
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    section = '"node"' if tls else "false"
    return (
        f'[[destinations]]\nname = "{name}"\nae_title = "{name.upper()}"\nhost = "localhost"\nport = {port}\n'
        f'tls = {section}\n{more}[[routes]]\nto = ["{name}"]\n'
    )


@contextlib.contextmanager
def cleaned(node: Node) -> Iterator[Node]:
    """End whatever the test left running of this node."""
    try:
        yield node
    finally:
        if node.process is not None:
            node.process.kill()
            node._wait(10)
