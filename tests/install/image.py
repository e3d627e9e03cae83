"""The image of config/container/Containerfile, built for the tests of this folder."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.install.chroots import Chroot
from tests.install.containerfile import Builder, Image
from tests.install.containers import require_namespaces

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "config/container/Containerfile"
STEP_SECONDS = 600

ARGUMENTS = {"REVISION": "0123456789ab", "REVISION_DATE": "2026-11-30"}
"""What the image is built with: see docs/how-to/install-containers.md."""


def run_in_root(
    root: Path, command: list[str], *, environment: dict[str, str], folder: str, user: str
) -> subprocess.CompletedProcess[str]:
    """Run a step of a build, as root of the chroot, with the network of this machine."""
    assert user.partition(":")[0] == "0", "a step of another user"
    words = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', folder, *command]
    return subprocess.run(
        Chroot(root).command(*words, environ=[f"{name}={value}" for name, value in environment.items()]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STEP_SECONDS,
        check=False,
    )


def build_image(make_base: Callable[[str], Chroot], folder: Path) -> Image:
    """Run every step of the Containerfile below `folder`."""
    require_namespaces()
    folder.mkdir(parents=True, exist_ok=True)

    def find_base(name: str) -> Path:
        """Debian's slim images are minimal systems of debootstrap without documentation."""
        release = re.fullmatch(r"docker\.io/library/debian:(\w+)-slim", name)
        assert release, f"{name}: no base that a chroot can stand for"
        base = folder / f"base-{release[1]}"
        if not base.exists():
            subprocess.run(
                ["cp", "-a", "--reflink=auto", str(make_base(release[1]).root), str(base)], check=True
            )
            # The shared base has Python. The image must install what it needs by its own steps.
            purge = ["apt-get", "purge", "-q", "-y", "--auto-remove", "python3", "python3-venv"]
            done = run_in_root(base, purge, environment={}, folder="/", user="0:0")
            assert done.returncode == 0, done.stderr
        return base

    return Builder(CONTAINERFILE, ROOT, folder / "stages", find_base, run_in_root, ARGUMENTS).build()
