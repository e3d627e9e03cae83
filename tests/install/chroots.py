"""Debian systems of their own, made by debootstrap from the mirror of this machine, for tests that install.

The base system of a release is made once in a test run. Each test gets a copy, which it may break. A program
runs as PID 1 of process and mount namespaces of its own. Whatever it leaves behind ends with it.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.install.artefacts import require_programs, run, skip_or_fail
from tests.install.network import find_mirror, list_proxies, open_network

BASE_SECONDS = 600

BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")
"""Packages of every base system: Python and its OpenSSL to run with, nothing to build with."""

_ENTER = r"""
set -e
mount --rbind /dev "$CHROOT/dev"
mount -t sysfs sysfs "$CHROOT/sys" 2>/dev/null || true
exec chroot "$CHROOT" /usr/bin/env -i HOME=/root LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""


@dataclass(frozen=True)
class Chroot:
    """A Debian system below a folder.

    Attributes:
        root: The folder that is `/` inside.
    """

    root: Path

    def command(self, *words: object, environ: Sequence[str] = ()) -> list[str]:
        """Return the command that runs `words` inside; `environ` has entries NAME=VALUE."""
        namespaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
        return [
            "unshare",
            *namespaces,
            f"--mount-proc={self.root / 'proc'}",
            "env",
            f"CHROOT={self.root}",
            "bash",
            "-c",
            _ENTER,
            "chroot",
            *list_proxies(),
            *environ,
            *map(str, words),
        ]

    def run(self, *words: object, environ: Sequence[str] = (), **options: Any) -> str:
        """Run a program inside to its end, and return what it prints."""
        return run(self.command(*words, environ=environ), **options)

    def start(self, *words: object, environ: Sequence[str] = (), **options: Any) -> "subprocess.Popen[str]":
        """Start a program inside. `send_signal` asks it to end; killing the returned process kills it."""
        options.setdefault("stdout", subprocess.PIPE)
        return subprocess.Popen(
            self.command(*words, environ=environ), stdin=subprocess.DEVNULL, text=True, **options
        )

    def send_signal(self, process: "subprocess.Popen[str]", number: int) -> None:
        """Send a signal to a started program. `unshare`, which waits for it, passes none on."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), number)

    def add(self, source: Path, target: str) -> None:
        """Copy a file or a folder inside; `target` is its path there."""
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, symlinks=True)
        else:
            shutil.copy2(source, place)

    def apt_install(self, *packages: str) -> None:
        """Install Debian packages, or .deb files by their path inside, without recommended ones."""
        self.run("apt-get", "update", "-q", timeout=BASE_SECONDS)
        command = ("apt-get", "install", "-q", "-y", "--no-install-recommends")
        self.run(*command, *packages, timeout=BASE_SECONDS)


def make_base(folder: Path, release: str) -> Chroot:
    """Make the base system of a release of Debian in `folder`."""
    require_programs("debootstrap", "unshare", "chroot")
    if os.getuid() != 0:
        skip_or_fail("a chroot needs root")
    options = ["--variant=minbase", f"--include={','.join(BASE_PACKAGES)}"]
    run(["debootstrap", *options, release, folder, find_mirror()], timeout=BASE_SECONDS)
    open_network(folder)
    # No package may start its daemon: nothing would end it.
    policy = folder / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    return Chroot(folder)


@contextlib.contextmanager
def copied(base: Chroot, folder: Path) -> Iterator[Chroot]:
    """Copy a base system; the copy is removed at the end."""
    run(["cp", "--archive", "--reflink=auto", base.root, folder])
    try:
        yield Chroot(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
