"""What the benchmarks know of a receiver: who it is, where it listens, what it costs, what it has stored."""

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.accounting import Group
from ingest.tls.keys import pairs

Durability = Literal["fsync", "page-cache"]

START_SECONDS = 60.0
CONNECT_SECONDS = 2.0


class Unavailable(Exception):  # noqa: N818 - not a fault: the report says it and goes on
    """A receiver that this machine cannot run; `str()` of it is the reason."""


class NotStartedError(Exception):
    """A receiver that should run here and did not start."""


@dataclass(frozen=True, slots=True)
class Pki:
    """Key material of one benchmark: receivers are "node", senders "load", both in `trusted`; PEM files."""

    certificate: Path
    key: Path
    load_certificate: Path
    load_key: Path
    trusted: Path


def make_pki(folder: Path) -> Pki:
    """Two self-signed pairs (RSA 2048) and a bundle with both, in `folder`, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    trusted = folder / "trusted.crt"
    for name in ("node", "load"):
        if not (folder / f"{name}.key").exists():
            pair = pairs.issue_self_signed(name, names=["localhost", "127.0.0.1"])
            pairs.write_pair(pair, folder / name)
            pairs.add_to_bundle(pair.certificate, trusted)
    return Pki(folder / "node.crt", folder / "node.key", folder / "load.crt", folder / "load.key", trusted)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to send to.

    Attributes:
        certificate: The sender's own, PEM; None for plain DICOM, then `key` and `trusted` are not used.
        trusted: PEM bundle of whom the sender trusts.
        called_ae: AE title of the receiver, at most 16 characters; `calling_ae` that of the sender.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    trusted: Path | None = None
    called_ae: str = "ANY-SCP"
    calling_ae: str = "LOAD"


@dataclass(frozen=True, slots=True)
class Facts:
    """Who a receiver is.

    Attributes:
        name: "ours", "floor", "dcmtk" …
        durable: Whether it syncs data and names to stable storage before it answers Success.
    """

    name: str
    version: str
    durable: bool


class Receiver(Protocol):
    """A running receiver."""

    @property
    def facts(self) -> Facts:
        """Who it is."""
        ...

    @property
    def target(self) -> Target:
        """Where it listens."""
        ...

    @property
    def group(self) -> Group:
        """Its processes: what is measured. Helpers such as a queue server are in groups of their own."""
        ...

    @property
    def folder(self) -> Path:
        """Where everything lies that it keeps."""
        ...

    def stored(self) -> int:
        """How many instances it keeps now."""
        ...

    def missing(self, uids: Iterable[str]) -> list[str]:
        """Those of these SOP instance UIDs that it does not keep."""
        ...

    def clear(self) -> None:
        """Remove all that it keeps, between runs on tmpfs; it stays running and holds no association."""
        ...


class Factory(Protocol):
    """A function that gives a receiver as a context manager."""

    def __call__(self, base: Path, keys: Pki, *, durability: Durability) -> AbstractContextManager[Receiver]:
        """Start a receiver that keeps its data below `base`; leaving the block ends it.

        `base` is made where it is not there.

        Raises:
            Unavailable: A program or library that it needs is not installed.
            NotStartedError: It did not start; the message says where its log is.
        """
        ...


def target_of(keys: Pki, port: int, *, called_ae: str = "ANY-SCP") -> Target:
    """Return the address of a receiver on this machine, with the key material of the sender."""
    return Target("127.0.0.1", port, keys.load_certificate, keys.load_key, keys.trusted, called_ae)


def free_port() -> int:
    """Choose a port for a program that must be told one.

    The kernel gives ports above 32767 to any socket that asks, so the choice stays below.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_listening(
    port: int,
    process: "subprocess.Popen[bytes] | subprocess.Popen[str]",
    log: Path,
    seconds: float = START_SECONDS,
) -> None:
    """Wait until something accepts connections on `port`.

    Raises:
        NotStartedError: The process ended or the time is over.
    """

    def accepts() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS).close()
        except OSError:
            return False
        return True

    wait_until(accepts, process, log, seconds)


def wait_until(
    ready: Callable[[], bool],
    process: "subprocess.Popen[bytes] | subprocess.Popen[str]",
    log: Path,
    seconds: float = START_SECONDS,
) -> None:
    """Wait for `ready()`.

    Raises:
        NotStartedError: The process ended or the time is over; with the end of its log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise NotStartedError(f"{process.args!r} is not ready (exit {process.poll()}); {log}:\n{said}")
        time.sleep(0.02)
