"""Senders alone: ours, DCMTK's and pynetdicom's send the same files to the floor, and take turns.

Files lie on the disk and in the page cache, as those of a store do that are sent on at once: a file system's
large folios cost half of what tmpfs takes for a read.

What counts is the CPU time of the sending process and its children. Starting a process, importing, the
handshake and the negotiation are the same for one file and for thousands: each run is a run with all files
less a run with one file just before it, for every sender alike.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks import rounds
from benchmarks.floor import floor
from benchmarks.load import Load, LoadError
from benchmarks.peers import LARGEST_PDU, find_program, said_by
from benchmarks.receivers import Facts, Receiver, Target, Unavailable
from benchmarks.storescu import Files
from benchmarks.workloads import Work
from ingest.dicom import part10

SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Sender:
    """One that sends files.

    Attributes:
        facts: Who it is; senders promise nothing about durability.
        command: The command line for a target and a folder that holds the files beside their `LIST`.
        environment: Variables more than those of this process.
    """

    facts: Facts
    command: Callable[[Target, Path], list[str]]
    environment: dict[str, str]


def _script(name: str) -> Callable[[Target, Path], list[str]]:
    def command(target: Target, folder: Path) -> list[str]:
        return [
            sys.executable,
            str(Path(__file__).with_name(name)),
            target.host,
            str(target.port),
            target.called_ae,
            target.calling_ae,
            *map(str, (target.certificate, target.key, target.trusted, folder / LIST)),
        ]

    return command


def ours() -> Sender:
    """`ingest.requestor.store_scu.StoreSCU` as the forward worker uses it."""
    root = str(Path(__file__).parents[1])
    facts = Facts("ours, sending", metadata.version("dicom-ingest"), durable=False)
    return Sender(facts, _script("send_ours.py"), {"PYTHONPATH": root})


def pynetdicom(*, chunked: bool = False) -> Sender:
    """Make the sender pynetdicom: as it is, or with data sets in pieces from their files."""
    try:
        version = metadata.version("pynetdicom")
    except metadata.PackageNotFoundError:
        raise Unavailable("pynetdicom is not installed") from None
    facts = Facts("pynetdicom, sending", version, durable=False)
    return Sender(facts, _script("pynetdicom_scu.py"), {"CHUNKED": "1"} if chunked else {})


def storescu() -> Sender:
    """DCMTK's storescu; `-nodelay`, since waiting for acknowledgements is not what is measured here."""
    program = find_program("storescu", lambda path: b"dcm4che" not in path.read_bytes()[:65536])
    version = said_by(program, "--version").split()[2].lstrip("v")

    def command(target: Target, folder: Path) -> list[str]:
        words = [program, "+tls", str(target.key), str(target.certificate), "+cf", str(target.trusted)]
        words += ["--max-pdu", str(LARGEST_PDU), "--max-send-pdu", str(LARGEST_PDU)]
        words += ["-aet", target.calling_ae, "-aec", target.called_ae, target.host, str(target.port)]
        return [*words, "+sd", "+sp", "*.dcm", str(folder)]

    return Sender(Facts("storescu", version, durable=False), command, {"TCP_NODELAY": "1"})


SENDERS: Final[dict[str, Callable[[], Sender]]] = {
    "ours": ours,
    "storescu": storescu,
    "pynetdicom": pynetdicom,
    "pynetdicom-chunked": partial(pynetdicom, chunked=True),
}
LIST: Final = "list"


@dataclass(frozen=True, slots=True)
class Used:
    """What one process took: CPU and wall seconds."""

    cpu: float
    seconds: float


def net(whole: Used, one: Used, files: int, data_bytes: int) -> rounds.Sample:
    """Return the cost of the files after the first.

    Args:
        whole: A run with all files.
        one: The run with one file beside it.
        files: How many there were, two or more.
        data_bytes: Of all their data sets.
    """
    more, seconds = files - 1, max(whole.seconds - one.seconds, 1e-9)
    share = data_bytes * more / files
    cpu = max(whole.cpu - one.cpu, 0.0)
    return {
        "instances": more,
        "rate": more / seconds,
        "mb_s": share / seconds / 1e6,
        "cpu_s_gb": cpu / share * 1e9,
        "cpu_ms": cpu / more * 1e3,
        "start_cpu_ms": one.cpu * 1e3,
    }


def measure(work: Work, setting: rounds.Setting, taken: dict[str, rounds.Taken]) -> None:
    """All rounds of a work whose entrants are senders; a floor on tmpfs takes what they send.

    Raises:
        LoadError: A sender failed, or what it sent did not arrive.
        NotStartedError: The floor did not start.
        Unavailable: There is no floor.
    """
    present: dict[str, Sender] = {}
    for entrant in work.entrants:
        try:
            present[entrant.label] = SENDERS[entrant.receiver]()
            taken[entrant.label].facts = present[entrant.label].facts
            taken[entrant.label].counted_by = "rusage"
        except Unavailable as error:
            taken[entrant.label].unavailable = str(error)
    entrants = tuple(entrant for entrant in work.entrants if entrant.label in present)
    base = setting.memory / "sink"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        sink = stack.enter_context(floor(base, setting.keys, durability="page-cache"))
        sent: dict[int, _Sent] = {}
        for load in {entrant.load.instances: entrant.load for entrant in entrants}.values():
            sent[load.instances] = stack.enter_context(_files(load, setting.disk))
        os.sync()  # or the kernel writes them out meanwhile
        for number in range(-1, work.pairs):
            if number >= rounds.LEAST_ROUNDS and time.monotonic() > setting.deadline:
                break
            for entrant in rounds.order(entrants, max(number, 0)):
                setting.step(number, entrant.label)
                sample = _round(present[entrant.label], sent[entrant.load.instances], sink)
                if number >= 0:
                    taken[entrant.label].samples.append({"round": number, **sample})


@dataclass(frozen=True, slots=True)
class _Sent:
    """What is sent in turn: one file, and all."""

    one: Files
    whole: Files


@contextlib.contextmanager
def _files(load: Load, folder: Path) -> Iterator[_Sent]:
    place = folder / f"send-{load.size}-{load.instances}"
    with (
        Files.made(place / "one", load.size, 1) as one,
        Files.made(place / "all", load.size, load.instances) as whole,
    ):
        for files in (one, whole):
            (files.folder / LIST).write_text("".join(f"{line}\n" for line in _listed(files)))
        yield _Sent(one, whole)


def _listed(files: Files) -> Iterator[str]:
    for uid in files.uids:
        path = files.folder / f"{uid}.dcm"
        with path.open("rb") as file:
            yield f"{uid} {part10.read_file_meta(file.fileno())[1]} {path}"


def _round(sender: Sender, sent: _Sent, sink: Receiver) -> rounds.Sample:
    one = _run(sender, sent.one, sink.target)
    whole = _run(sender, sent.whole, sink.target)
    missing = sink.missing((*sent.one.uids, *sent.whole.uids))
    sink.clear()
    figures = net(whole, one, len(sent.whole.uids), sent.whole.data_bytes)
    return {**figures, "failed": 0, "missing": len(missing)}


def _run(sender: Sender, files: Files, target: Target) -> Used:
    environment = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"}
    before, begun = _children_seconds(), time.perf_counter()
    done = subprocess.run(
        sender.command(target, files.folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment, **sender.environment},
        timeout=SECONDS,
        check=False,
    )
    used = Used(_children_seconds() - before, time.perf_counter() - begun)
    if done.returncode:
        said = done.stdout.decode(errors="replace")[-2000:]
        raise LoadError(f"{sender.facts.name} ended with {done.returncode}:\n{said}")
    return used


def _children_seconds() -> float:
    """CPU time of the children that have ended and of theirs; the kernel counts it to the nanosecond."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
