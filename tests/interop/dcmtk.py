"""DCMTK's echoscu and storescu, as their users call them."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.peers import require_program
from tests.support.pki import Material

SECONDS = 60


def authenticated(material: Material, name: str, trusted: Path | None = None) -> list[str]:
    """TLS with a certificate, as "peer" or whoever else `material` knows."""
    return [
        "+tls",
        str(material.key(name)),
        str(material.certificate(name)),
        "+cf",
        str(trusted or material.trusted),
    ]


def anonymous(material: Material) -> list[str]:
    """TLS without a certificate of its own."""
    return ["--anonymous-tls", "+cf", str(material.trusted)]


def scu(
    program: str, port: int, *options: str, files: Sequence[Path] = (), no_delay: bool = True
) -> "subprocess.CompletedProcess[str]":
    """Run one of DCMTK's SCUs; DCMTK writes no more than a few lines, and stops at deadlines of its own."""
    command = [
        require_program(program),
        "-v",
        "-to",
        "10",
        "-ta",
        "10",
        "-td",
        "30",
        *options,
        "localhost",
        str(port),
    ]
    return subprocess.run(
        [*command, *map(str, files)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # By default it leaves Nagle's algorithm on, which costs storescp as the remote 80 ms an instance.
        env={**os.environ, "TCP_NODELAY": "1" if no_delay else "0"},
        timeout=SECONDS,
        check=False,
    )


def echoscu(port: int, *options: str) -> "subprocess.CompletedProcess[str]":
    return scu("echoscu", port, *options)


def storescu(
    port: int, *options: str, files: Sequence[Path], no_delay: bool = True
) -> "subprocess.CompletedProcess[str]":
    return scu("storescu", port, *options, files=files, no_delay=no_delay)
