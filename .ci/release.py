"""Check that a release can be made, build it, and on demand tag it. `make release` runs this program.

Without `--tag` nothing is changed but the folder of the artefacts. Nothing is ever pushed.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUMS = "SHA256SUMS"

HEADING = re.compile(r"^## (?P<version>\S+)(?: \((?P<date>[^)]*)\))?$", re.MULTILINE)
VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")

TESTS = (
    "make lint",
    "make test",
    "make test-install",
    "make test-long",
    "make test-pythons   (as root)",
)
"""They take too long for this program. The person who releases has run them on this commit."""


class ReleaseError(Exception):
    """A check failed. The message says what to do."""


@dataclass(frozen=True)
class Section:
    """A section of the changelog.

    Attributes:
        version: Its version, or "Unreleased".
        date: Its date as it is written; empty without one.
        text: Everything below the heading.
    """

    version: str
    date: str
    text: str


def read_changelog(text: str) -> list[Section]:
    """Return the sections of the changelog, the newest first."""
    found = list(HEADING.finditer(text))
    ends = [*(each.start() for each in found[1:]), len(text)]
    return [
        Section(each["version"], each["date"] or "", text[each.end() : end].strip())
        for each, end in zip(found, ends, strict=True)
    ]


def read_version(root: Path) -> str:
    """Return the version of pyproject.toml."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def check_release(root: Path, today: datetime.date) -> Iterator[tuple[str, str]]:
    """Yield each check and what is wrong; an empty text is none."""
    version = read_version(root)
    yield (
        "version",
        "" if VERSION.fullmatch(version) else f"{version} is no version such as 1.2.3 or 1.2.3rc1",
    )
    yield "changelog", _check_changelog(root, version, today)
    yield "clean tree", _check_tree(root)
    yield "branch", _check_branch(root)
    yield "tag", _check_tag(root, version)


def _check_changelog(root: Path, version: str, today: datetime.date) -> str:
    sections = read_changelog((root / "CHANGELOG.md").read_text())
    released = next((each for each in sections if each.version != "Unreleased"), None)
    if released is None or released.version != version:
        newest = released.version if released else "none"
        return f'its newest version is {newest}; rename "Unreleased" to "{version} ({today})"'
    if sections[0].version == "Unreleased" and sections[0].text:
        return f'"Unreleased" is not empty; move its points to {version}'
    if released.date != str(today):
        return f"{version} has the date {released.date or 'none'}; write {today}"
    return "" if released.text else f"{version} has no points"


def _check_tree(root: Path) -> str:
    changed = run_git(root, "status", "--porcelain").splitlines()
    return f"{len(changed)} files are not committed, such as {changed[0][3:]}; commit them" if changed else ""


def _check_branch(root: Path) -> str:
    branch = run_git(root, "branch", "--show-current").strip()
    return "" if branch == "main" else f"this is {branch or 'no branch'}; check main out"


def _check_tag(root: Path, version: str) -> str:
    if not run_git(root, "tag", "--list", f"v{version}").strip():
        return ""
    return f"v{version} exists; raise the version in pyproject.toml"


def run_git(root: Path, *arguments: str) -> str:
    """Run git and return its output.

    Raises:
        ReleaseError: git failed.
    """
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def list_artefacts(folder: Path) -> list[Path]:
    """Return what a release consists of: wheels, sdist, packages and constraints."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(SUMS))


def check_artefacts(folder: Path, version: str) -> None:
    """Check that each artefact is of this version, and that none is missing.

    Raises:
        ReleaseError: An artefact is missing, or of another version.
    """
    names = [path.name for path in list_artefacts(folder)]
    for ending, what in ((".tar.gz", "sdist"), (".whl", "wheel")):
        if not any(name.endswith(ending) and name.startswith(f"dicom_ingest-{version}") for name in names):
            raise ReleaseError(f"{folder} has no {what} of {version}; see the output of make dist")
    for name in names:
        if name.startswith("dicom_ingest-") and not re.match(rf"dicom_ingest-{re.escape(version)}[-.]", name):
            raise ReleaseError(f"{folder}/{name} is of another version; remove it")


def check_commits(folder: Path, root: Path) -> None:
    """Check that each wheel, sdist and package was built from the commit that is checked out.

    Raises:
        ReleaseError: One was built from another commit, from changed files, or does not say.
    """
    head = run_git(root, "rev-parse", "HEAD").strip()
    for path in list_artefacts(folder):
        if path.suffix not in {".whl", ".gz", ".deb"}:
            continue
        found = re.search(r'^COMMIT = "([0-9a-f]{7,40})(-dirty)?"$', _read_build_info(path), re.MULTILINE)
        if found is None:
            raise ReleaseError(f"{path} does not say which commit it was built from; run make dist again")
        if found[2] or not head.startswith(found[1]):
            built = "".join(each or "" for each in found.groups())
            raise ReleaseError(
                f"{path} was built from {built}, and {head[:12]} is checked out; run make release again "
                "(make deb for a package), test what it builds, then tag"
            )


def _read_build_info(path: Path) -> str:
    """Return the module ingest/_build.py of an artefact; an empty text if it has none."""
    ending = "ingest/_build.py"
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(ending).decode() if ending in wheel.namelist() else ""
    content = path.read_bytes()
    if path.suffix == ".deb":
        if shutil.which("dpkg-deb") is None:
            raise ReleaseError(
                f"{path} cannot be read: dpkg-deb is missing; remove the package or use Debian"
            )
        command = ["dpkg-deb", "--fsys-tarfile", str(path)]
        content = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(f"/{ending}") else None
            if file is not None:
                return file.read().decode()
    return ""


def write_sums(folder: Path) -> str:
    """Write the SHA-256 of each artefact, in the form of sha256sum(1); return the text."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in list_artefacts(folder)
    ]
    (folder / SUMS).write_text("".join(lines))
    return "".join(lines)


def sign_sums(folder: Path) -> None:
    """Sign the list of hashes with the key of the person who releases.

    Raises:
        ReleaseError: There is no key, or gpg failed.
    """
    if shutil.which("gpg") is None:
        raise ReleaseError("gpg is missing; apt-get install gnupg")
    command = ["gpg", "--batch", "--yes", "--armor", "--detach-sign", str(folder / SUMS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"gpg cannot sign: {done.stderr.strip()}; see `gpg --list-secret-keys`")


def release(root: Path, folder: Path, *, tags: bool, today: datetime.date, build: Callable[[], None]) -> None:
    """Check, build and describe the release; with `tags` sign and tag what was built before.

    Raises:
        ReleaseError: A check failed. Nothing was tagged.
    """
    failed = 0
    for name, fault in check_release(root, today):
        print(f"{'FAULT' if fault else 'ok':<6} {name}{': ' + fault if fault else ''}")
        failed += bool(fault)
    if failed:
        raise ReleaseError(f"{failed} checks failed; nothing was built")
    if not tags:  # what was built by a dry run was tested since
        build()
    version = read_version(root)
    check_artefacts(folder, version)
    check_commits(folder, root)
    print(write_sums(folder), end="")
    print("these must have passed on this commit:", *(f"  {test}" for test in TESTS), sep="\n")
    if not tags:
        print(f"dry run: nothing was tagged; make release TAG=yes signs {SUMS} and tags v{version}")
        return
    sign_sums(folder)
    run_git(root, "tag", "--sign", f"v{version}", "--message", f"dicom-ingest {version}")
    print(f"tagged v{version}; next: git push origin main v{version}, and publish {folder}")


def main() -> int:
    """Run the program, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", action="store_true", help="sign the hashes, and make a signed tag")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder of the artefacts")
    options = parser.parse_args()
    make = [os.environ.get("MAKE", "make"), "dist", f"DIST={options.dist}"]
    today = datetime.datetime.now(datetime.UTC).date()

    def build() -> None:
        subprocess.run(make, cwd=ROOT, check=True)

    try:
        release(ROOT, options.dist, tags=options.tag, today=today, build=build)
    except (ReleaseError, subprocess.CalledProcessError) as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
