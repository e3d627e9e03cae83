"""The machine that `.ci/run` makes has every program that a test asks for."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ROOT / ".ci" / "run"
ASKING = {"require_program", "require_programs", "find_program", "which"}

PACKAGES = {
    "Orthanc": "orthanc",
    "cc": "gcc",
    "chroot": "",
    "chromium": "chromium",
    "curl": "curl",
    "dcmdump": "dcmtk",
    "debootstrap": "debootstrap",
    "dpkg-deb": "",
    "dpkg-shlibdeps": "dpkg-dev",
    "echoscu": "dcmtk",
    "gcc": "gcc",
    "groff": "groff-base",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "java": "default-jdk-headless",
    "jing": "jing",
    "keytool": "default-jdk-headless",
    "mkfs.exfat": "exfatprogs",
    "mount.exfat-fuse": "exfat-fuse",
    "nginx": "nginx",
    "node": "nodejs",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "orthanc": "orthanc",
    "pivot_root": "util-linux",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "redis-server": "redis-server",
    "rsync": "rsync",
    "rsyslogd": "rsyslog",
    "setpriv": "util-linux",
    "sqlite3": "sqlite3",
    "storescp": "dcmtk",
    "storescu": "dcmtk",
    "strace": "strace",
    "strip": "binutils",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
    "valgrind": "valgrind",
    "yamllint": "yamllint",
}
"""Debian's package of each program; empty for one that every Debian has."""

OPTIONAL = {"kubectl"}
"""Programs without which a test is skipped in CI too: Debian 12 has none that is new enough."""


def list_programs() -> Iterator[tuple[str, str]]:
    """Yield each program that a test asks for by its name, and the place."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        source = path.read_text()
        if not any(name in source for name in ASKING):
            continue
        for call in ast.walk(ast.parse(source)):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if name in ASKING:
                for argument in call.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield argument.value, f"{path.relative_to(ROOT)}:{call.lineno}"


def test_ci_installs_the_package_of_every_program_that_a_test_asks_for() -> None:
    installed = set(
        re.findall(r"[\w.+-]+", " ".join(re.findall(r"packages\+?=\(([^)]*)\)", RUN.read_text())))
    )
    programs = [(name, place) for name, place in list_programs() if name not in OPTIONAL]
    assert len({name for name, _ in programs}) > 30
    unknown = sorted({f"{name} ({place})" for name, place in programs if name not in PACKAGES})
    assert not unknown, "add the package to .ci/run, and the program to PACKAGES"
    missing = {PACKAGES[name] for name, _ in programs} - installed - {""}
    assert not missing, "add these to the packages of .ci/run"
