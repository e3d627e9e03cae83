"""A node of ours as the receiver: its own configuration, its processes' CPU time and memory."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load import Target
from ingest.tls import pki

CONFIGURATION = """
[node]
data_dir = "var"
[[listeners]]
host = "127.0.0.1"
port = 0
tls = "node"
[tls.node]
certificate = "node.crt"
private_key = "node.key"
trusted = ["trusted.crt"]
[receive]
durability = "{durability}"
processes = {processes}
[log]
level = "warning"
file = "log"
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds used, by name of process."""

    seconds: dict[str, float]

    def since(self, before: "Cost") -> dict[str, float]:
        """CPU seconds used after `before` was taken."""
        return {name: value - before.seconds.get(name, 0.0) for name, value in self.seconds.items()}


@dataclass(frozen=True, slots=True)
class Receiver:
    """A running node."""

    target: Target
    folder: Path
    pid: int

    def processes(self) -> list[psutil.Process]:
        """All of it, the supervisor first."""
        parent = psutil.Process(self.pid)
        return [parent, *parent.children(recursive=True)]

    def cost(self) -> Cost:
        """CPU time until now."""
        totals: dict[str, float] = {}
        for process in self.processes():
            times = process.cpu_times()
            totals[process.name()] = totals.get(process.name(), 0.0) + times.user + times.system
        return Cost(totals)

    def memory(self) -> dict[str, int]:
        """Proportional set size of the largest process of each name, bytes."""
        sizes: dict[str, int] = {}
        for process in self.processes():
            sizes[process.name()] = max(sizes.get(process.name(), 0), process.memory_full_info().pss)
        return sizes

    def waiting(self) -> int:
        """Instances that are promised and not yet in the store."""
        return sum(1 for _ in self.folder.glob("var/spool/L*/ready/*.dcm"))


@contextlib.contextmanager
def receiver(folder: Path, durability: str, *, processes: int = 2, whole: bool = False) -> Iterator[Receiver]:
    """A node in `folder`: its listeners alone, or (with `whole`) with queue, persist worker and ledger."""
    for name in ("node", "load"):
        pair = pki.self_signed(name, names=["localhost"])
        pki.write_pair(pair, folder / name)
        pki.trust(pair.certificate, folder / "trusted.crt")
    path = folder / "ingest.toml"
    path.write_text(CONFIGURATION.format(durability=durability, processes=processes))
    process = subprocess.Popen(
        [sys.executable, "-m", "ingest.cli", "serve" if whole else "listen", "-c", str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the node has no standard output")
        line = process.stdout.readline()
        if not line.startswith("ready"):
            raise RuntimeError(f"the node is not ready; see {folder / 'log'}")
        port = int(line.split()[1].rpartition(":")[2])
        target = Target("localhost", port, folder / "load.crt", folder / "load.key", folder / "trusted.crt")
        yield Receiver(target, folder, process.pid)
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
