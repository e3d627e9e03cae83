"""What open pages of the web console cost reception: the same load without and with browsers."""

import contextlib
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final, Literal

from benchmarks import pairs
from benchmarks.load import Load, run
from benchmarks.load_idle import start_forked
from benchmarks.node import Node, whole
from benchmarks.path import drain
from benchmarks.receivers import Pki, free_port

State = Literal["without", "with", "without, again"]
STATES: Final[tuple[State, ...]] = ("without", "with", "without, again")
LISTENER: Final = "ingest-listen"
CONSOLE: Final = "ingest-console"
PAGES_OF_A_TOKEN: Final = 10
"""Streams that one token opens: fewer than the console allows one user."""

LISTED_SECONDS: Final = 4.0
"""After this time an open list asks for its rows again, as the script of the pages does."""

OPENING_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the load.

    Attributes:
        listener_ms: CPU milliseconds of the listeners for an instance.
        p99_ms: Latency that 99% of the instances did not exceed.
        rate: Instances a second.
        console_share: CPU seconds of the console in a second.
    """

    listener_ms: float
    p99_ms: float
    rate: float
    console_share: float


@dataclass(frozen=True, slots=True)
class Found:
    """Samples of the three states, round by round."""

    load: Load
    browsers: int
    samples: dict[State, list[Sample]] = field(default_factory=dict)

    def ratio(self, state: State, measure: str) -> pairs.Ratio | None:
        """Return the ratio of a state to the runs without browsers, if any round was long enough."""
        mine, theirs = ([getattr(one, measure) for one in self.samples[each]] for each in (state, "without"))
        mine, theirs = pairs.both_measured(mine, theirs)
        return pairs.ratio(mine, theirs) if mine else None


def measure(base: Path, keys: Pki, load: Load, *, browsers: int, rounds: int) -> Found:
    """Send `load` without browsers, with them, and without them again, in rotating order.

    The third state is compared with the first like the second. It shows how much two runs of the same
    thing differ.

    Raises:
        LoadError: The node broke off.
        TimeoutError: The browsers could not open their pages.
    """
    port = free_port()
    with whole(base, keys, durability="page-cache", console_port=port) as node:
        tokens = [_make_token(base, number) for number in range(-(-browsers // PAGES_OF_A_TOKEN))]
        run(node.target, load)  # warms up
        found = Found(load, browsers, {state: [] for state in STATES})
        for number in range(rounds):
            turn = number % len(STATES)
            for state in (*STATES[turn:], *STATES[:turn]):
                opened = browsers if state == "with" else 0
                with _open_pages(port, tokens, opened):
                    found.samples[state].append(_sample(node, load))
        return found


def _sample(node: Node, load: Load) -> Sample:
    drain(node)
    before, begun = node.group.by_name(), time.monotonic()
    result = run(node.target, load)
    took = time.monotonic() - begun
    used = {name: seconds - before.get(name, 0.0) for name, seconds in node.group.by_name().items()}
    return Sample(
        listener_ms=used[LISTENER] / result.instances * 1e3,
        p99_ms=result.latency(0.99) * 1e3,
        rate=result.instances / result.seconds,
        console_share=used.get(CONSOLE, 0.0) / took,
    )


def _make_token(base: Path, number: int) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ingest.cli",
            "console",
            "token",
            "add",
            f"browser{number}",
            "-c",
            "ingest.toml",
        ],
        cwd=base,
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"^\s*(\S{30,})\s*$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return found[1]


@contextlib.contextmanager
def _open_pages(port: int, tokens: list[str], browsers: int) -> Iterator[None]:
    """Keep pages open, each with a stream of events. Every second one is a list that asks for its rows again.

    The clients are one process, which does nothing but read and has the lowest priority. In a hospital
    they are on other hosts.
    """
    if not browsers:
        yield
        return
    context = multiprocessing.get_context("fork")
    opened, stop = context.Event(), context.Event()
    process = context.Process(target=_read_pages, args=(port, tokens, browsers, opened, stop))
    start_forked(process)
    try:
        if not opened.wait(OPENING_SECONDS):
            raise TimeoutError(f"the console did not open {browsers} streams")
        yield
    finally:
        stop.set()
        process.join()


def _read_pages(port: int, tokens: list[str], browsers: int, opened: Event, stop: Event) -> None:
    os.nice(19)
    streams = [
        _request(port, tokens[n // PAGES_OF_A_TOKEN], "/events?page=overview") for n in range(browsers)
    ]
    for stream in streams:
        if not stream.recv(65536).startswith(b"HTTP/1.1 200"):
            return
        stream.setblocking(False)
    opened.set()
    lists = range(0, browsers, 2)
    due = [time.monotonic() + LISTED_SECONDS * n / browsers for n in lists]
    while not stop.wait(0.05):
        for stream in streams:
            with contextlib.suppress(BlockingIOError):
                stream.recv(1 << 20)
        for place, number in enumerate(lists):
            if time.monotonic() >= due[place]:
                due[place] += LISTED_SECONDS
                path = ("/deliveries", "/studies", "/quarantine")[place % 3]
                with _request(port, tokens[number // PAGES_OF_A_TOKEN], path, live=True) as answer:
                    while answer.recv(1 << 20):
                        pass


def _request(port: int, token: str, path: str, *, live: bool = False) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=OPENING_SECONDS)
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Authorization: Bearer {token}"]
    if live:
        lines += ["HX-Request: true", "X-Live: 1", "Connection: close"]
    connection.sendall("\r\n".join((*lines, "", "")).encode())
    return connection
