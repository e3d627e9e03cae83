"""The load generator: pre-encoded C-STORE messages over TLS, a process for each association.

It counts what was answered, not what was sent: every status is checked, and `Result.acknowledged` names what
a receiver must have stored.
"""

import contextlib
import gc
import mmap
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import ssl
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

from benchmarks.load_idle import idle_associations, start_forked
from benchmarks.messages import Message, instance_uid
from benchmarks.receivers import Target
from benchmarks.session import LoadError, Pause, Session, tls_context

__all__ = ["Load", "LoadError", "Result", "Target", "run"]

STALLED_SECONDS: Final = 120.0
"""Without one more answer for so long, a run is given up."""

PROGRESS_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """What to send.

    Attributes:
        size: Bytes of a data set.
        instances: For each association.
        associations: At the same time, each in a process of its own.
        pdu: Largest PDU length to send (PS3.8 D.1), if the receiver takes it.
        tls_version: "TLSv1.3" or "TLSv1.2".
        operations: Asynchronous operations to ask for, and to keep outstanding where they are granted.
        think_seconds: Pause of each sender before each instance but the first.
        per_second: Instances a second of all senders together, at most; 0 is as fast as answers come.
        churn: Connect, send one instance and release, `instances` times over.
        idle: Further associations that are opened before and say nothing.
        root: UID under which the instances are numbered, at most 48 characters; the same again sends the same
            instances. Empty makes a new one.
    """

    size: int
    instances: int
    associations: int = 4
    pdu: int = 131072
    tls_version: str = "TLSv1.3"
    operations: int = 1
    think_seconds: float = 0.0
    per_second: float = 0.0
    churn: bool = False
    idle: int = 0
    root: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Attributes:
        seconds: From the first byte of the first data set (churn: the first connection) to the last answer.
        instances: That were answered with 0000H.
        bytes: Of their data sets.
        latencies: Of every answered instance, seconds from its first byte to its answer; with churn, from
            connecting to the answer to A-RELEASE.
        sent: When the last byte of each instance went out, by association and number, on the clock of
            time.perf_counter(); not with churn.
        failed: Instances that were answered with another status than 0000H.
        statuses: How often each status came.
        operations: That were outstanding at a time, at most: 1 where the receiver grants no more.
        sender_seconds: CPU time of the senders in those seconds.
        root: Of the UIDs.
    """

    seconds: float
    instances: int
    bytes: int
    latencies: tuple[float, ...]
    sent: tuple[tuple[float, ...], ...] = field(repr=False)
    failed: int
    statuses: dict[int, int]
    operations: int
    sender_seconds: float
    root: str
    refused: frozenset[tuple[int, int]] = field(repr=False)
    load: Load

    def acknowledged(self) -> Iterator[str]:
        """Return the SOP instance UIDs that were answered with 0000H."""
        for association in range(self.load.associations):
            for number in range(self.load.instances):
                if (association, number) not in self.refused:
                    yield instance_uid(f"{self.root}.{association}", number)

    def latency(self, share: float) -> float:
        """Return the latency in seconds that `share` (0.5, 0.99) of the instances did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(slots=True)
class _Part:
    """What one sender did."""

    ended: float = 0.0
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    sent: "array[float]" = field(default_factory=lambda: array("d"))
    statuses: Counter[int] = field(default_factory=Counter)
    refused: list[int] = field(default_factory=list)
    cpu: float = 0.0
    data_bytes: int = 0
    operations: int = 1


@dataclass(slots=True)
class _Sender:
    process: BaseProcess
    pipe: Connection


def run(target: Target, load: Load, *, progress: Callable[[int], None] | None = None) -> Result:
    """Send it all; returns when everything is answered.

    Senders are forked: a caller with threads must hold no lock that the standard library takes.

    Args:
        target: The receiver.
        load: What to send.
        progress: Called a few times a second with how many instances were answered.

    Raises:
        LoadError: A sender could not associate, lost its association, or nothing was answered for long.
    """
    root = load.root or f"2.25.{time.time_ns()}"
    with idle_associations(target, load.idle, load.tls_version), _Run(target, load, root) as senders:
        started = senders.start()
        parts = senders.collect(progress)
    statuses = sum((part.statuses for part in parts), Counter())
    stored = statuses[0]
    return Result(
        seconds=max(part.ended for part in parts) - started,
        instances=stored,
        bytes=stored * parts[0].data_bytes,
        latencies=tuple(latency for part in parts for latency in part.latencies),
        sent=tuple(tuple(part.sent) for part in parts),
        failed=statuses.total() - stored,
        statuses=dict(statuses),
        operations=min(part.operations for part in parts),
        sender_seconds=sum(part.cpu for part in parts),
        root=root,
        refused=frozenset((i, number) for i, part in enumerate(parts) for number in part.refused),
        load=load,
    )


class _Run:
    """The senders of one run, from their fork to their end."""

    def __init__(self, target: Target, load: Load, root: str) -> None:
        self._load = load
        self._counts = mmap.mmap(-1, 8 * load.associations)
        self._go_read, self._go_write = os.pipe()
        context = multiprocessing.get_context("fork")
        self._senders: list[_Sender] = []
        for number in range(load.associations):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=self._body, args=(target, f"{root}.{number}", number, theirs), daemon=True
            )
            start_forked(process)
            theirs.close()
            self._senders.append(_Sender(process, ours))

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._go_write)  # whoever still waits for it ends
        os.close(self._go_read)
        for sender in self._senders:
            sender.process.join(5.0)
            if sender.process.is_alive():
                sender.process.kill()
                sender.process.join()
            sender.pipe.close()
            sender.process.close()
        self._counts.close()

    def start(self) -> float:
        """Wait until all are associated, let them go; the time then (perf_counter)."""
        for sender in self._senders:
            if not sender.pipe.poll(STALLED_SECONDS):
                raise LoadError("a sender is not associated in time")
            _received(sender)
        started = time.perf_counter()
        os.write(self._go_write, b"g" * len(self._senders))
        return started

    def collect(self, progress: Callable[[int], None] | None) -> list[_Part]:
        """Wait until all have sent what they did."""
        parts: dict[int, _Part] = {}
        last, since = -1, time.monotonic()
        with memoryview(self._counts) as raw, raw.cast("Q") as counts:
            while len(parts) < len(self._senders):
                waiting = {s.pipe: i for i, s in enumerate(self._senders) if i not in parts}
                for pipe in multiprocessing.connection.wait(list(waiting), PROGRESS_SECONDS):
                    number = waiting[pipe]  # type: ignore[index]
                    part = _received(self._senders[number])
                    assert isinstance(part, _Part)
                    parts[number] = part
                answered = sum(counts)
                if progress is not None and answered != last:
                    progress(answered)
                if answered != last:
                    last, since = answered, time.monotonic()
                elif time.monotonic() - since > STALLED_SECONDS:
                    for sender in self._senders:
                        sender.process.kill()
                    raise LoadError(f"no answer for {STALLED_SECONDS:.0f} s, after {answered}")
        return [parts[number] for number in range(len(self._senders))]

    def _body(self, target: Target, root: str, number: int, pipe: Connection) -> None:
        """Run a sender process. It never returns."""
        os.close(self._go_write)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            _send(target, self._load, root, _Caller(pipe, self._go_read, self._counts, number))
        except (LoadError, OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                pipe.send(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)


def _received(sender: _Sender) -> object:
    try:
        said = sender.pipe.recv()
    except EOFError:
        sender.process.join(1.0)
        raise LoadError(f"a sender ended, exit code {sender.process.exitcode}") from None
    if isinstance(said, str):
        raise LoadError(said)
    return said


class _Caller:
    """A sender's way to who started it."""

    def __init__(self, pipe: Connection, go: int, counts: mmap.mmap, number: int) -> None:
        self._pipe = pipe
        self._go = go
        self._counts = memoryview(counts).cast("Q")
        self._number = number

    def wait_to_go(self) -> bool:
        """Say that all is ready, and wait; false when it is called off."""
        self._pipe.send(None)
        return bool(os.read(self._go, 1))

    def count(self, answers: int) -> None:
        """Say how many there were until now."""
        self._counts[self._number] = answers

    def report(self, part: _Part) -> None:
        """Say what came of it."""
        self._pipe.send(part)


def _send(target: Target, load: Load, root: str, caller: _Caller) -> None:
    part = _Part()
    answers = 0

    def answered(which: int, status: int, seconds: float) -> None:
        nonlocal answers
        answers += 1
        caller.count(answers)
        part.latencies.append(seconds)
        part.statuses[status] += 1
        if status:
            part.refused.append(which)

    tls = tls_context(target, load.tls_version)
    with Session(target, tls, load.operations) as session:
        part.operations = session.operations
        message = Message(load.size, min(load.pdu, session.max_pdu or load.pdu), root)
        part.data_bytes = message.data_bytes
        gc.disable()  # nothing here makes cycles
        if load.churn:
            session.release()
            session.close()
        if not caller.wait_to_go():
            return
        used = _cpu_seconds()
        if load.churn:
            _visit(target, tls, load, message, answered)
        else:
            every = load.associations / load.per_second if load.per_second else 0.0
            pause = Pause(load.think_seconds, every)
            session.store(message, range(load.instances), answered, pause, part.sent.append)
        part.ended = time.perf_counter()
        part.cpu = _cpu_seconds() - used
        if not load.churn:
            session.release()
    caller.report(part)


def _visit(
    target: Target,
    tls: ssl.SSLContext | None,
    load: Load,
    message: Message,
    answered: Callable[[int, int, float], None],
) -> None:
    """Send each instance over an association of its own."""
    statuses: list[int] = []
    for number in range(load.instances):
        if load.think_seconds and number:
            time.sleep(load.think_seconds)
        begun = time.perf_counter()
        with Session(target, tls) as session:
            session.store(message, range(number, number + 1), lambda _, status, __: statuses.append(status))
            session.release()
        answered(number, statuses.pop(), time.perf_counter() - begun)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
