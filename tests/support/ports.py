"""Ports of this machine for servers under test."""

import contextlib
import os
import random
import socket

_CHOSEN: set[int] = set()


def free_port() -> int:
    """Choose a port for a program that must be told one. No other worker of this test run chooses the same.

    The port is free at this moment, but nothing reserves it. The kernel gives ports above 32767 to sockets
    that ask for any, so the choice stays below. Workers of pytest-xdist choose from disjoint sets, and one
    worker never chooses a port twice, because a program that was just told a port may not listen there yet.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = random.choice(range(10_000 + worker, 32_000, workers))
        if port in _CHOSEN:
            continue
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("0.0.0.0", port))  # free at every address, because Orthanc listens at all of them
            _CHOSEN.add(port)
            return port
