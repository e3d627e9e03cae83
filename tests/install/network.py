"""Let a chroot reach the package indexes that this machine reaches. None of that is part of the repository.

Needs the standard library alone, so that tests/pythons.sh can run it:

    network.py mirror               prints the mirror of Debian
    network.py newest RELEASE…      prints the first of these releases that the mirror has
    network.py open ROOT            writes the settings into the chroot ROOT
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

PUBLIC_MIRROR = "http://deb.debian.org/debian"

AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"

INDEX_SETTINGS = ("cert", "index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")

PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def find_mirror() -> str:
    """Return the mirror of Debian that apt of this machine uses, or the public one."""
    listed = _run("apt-get", "indextargets", "--format", "$(REPO_URI)").split()
    mirrors = sorted({uri.rstrip("/") for uri in listed if uri.rstrip("/").endswith("/debian")})
    return mirrors[0] if mirrors else PUBLIC_MIRROR


def has_release(mirror: str, release: str) -> bool:
    """Whether a mirror has a release of Debian."""
    try:
        with urllib.request.urlopen(f"{mirror}/dists/{release}/Release", timeout=60) as answer:
            return bool(answer.read(1))
    except OSError:
        return False


def open_network(root: Path) -> None:
    """Copy names, certificates, proxies and the settings of apt and pip into a chroot."""
    settings = _read_pip_settings()
    authorities = settings.pop("cert", AUTHORITIES)
    for source, target in (("/etc/resolv.conf", "/etc/resolv.conf"), (authorities, AUTHORITIES)):
        if Path(source).is_file():
            (root / target.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, root / target.lstrip("/"))
    dumped = _run("apt-config", "dump").splitlines()
    acquire = [line for line in dumped if re.match(r'Acquire::(https?|Retries)\b.* ".+";', line)]
    _write(root / "etc/apt/apt.conf.d/99network", acquire)
    indexes = [f"{name} = {value}" for name, value in settings.items()]
    _write(root / "etc/pip.conf", ["[global]", f"cert = {AUTHORITIES}", *indexes])


def list_proxies() -> list[str]:
    """Return the proxies of this machine as NAME=VALUE."""
    return [f"{name}={os.environ[name]}" for name in PROXIES if os.environ.get(name)]


def _read_pip_settings() -> dict[str, str]:
    """Return the settings of pip that a download needs, from its files and its variables.

    Indexes in folders of this machine are left out: the chroot does not have them.
    """
    found = {}
    for line in _run(sys.executable, "-m", "pip", "config", "list").splitlines():
        match = re.fullmatch(r"(?:global|install|:env:)\.([\w-]+)=(.*)", line)
        if match is None or match[1] not in INDEX_SETTINGS:
            continue
        words = str(ast.literal_eval(match[2])).split()
        kept = [word for word in words if match[1] == "cert" or not word.startswith(("file:", "/"))]
        if kept:
            found[match[1]] = " ".join(kept)
    return found


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _run(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout


def main(arguments: list[str]) -> str:
    """Run one of the commands above, and return what it prints."""
    match arguments:
        case ["mirror"]:
            return find_mirror()
        case ["newest", *releases]:
            mirror = find_mirror()
            for release in releases:
                if has_release(mirror, release):
                    return release
            raise SystemExit(f"{mirror} has none of {', '.join(releases)}")
        case ["open", root]:
            open_network(Path(root))
            return ""
    raise SystemExit(__doc__)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
