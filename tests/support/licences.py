"""The licences of all dependencies: `python -m tests.support.licences FILE` writes the page.

pip-licenses reads them from the packages of the virtual environment.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs/reference/licences.md"

GROUPS: Final = {
    "node": "Every node",
    "console": "With the extra `console`",
    "postgresql": "With the extra `postgresql`",
    "transcode": "With the extra `transcode`",
    "dev": "To build and test only",
}
"""Headings of the page. A package stands below the first group that needs it."""

NPM: Final = {
    "config/docs": "npm: the documentation site",
    "tests/interop/dcmjs": "npm: tests with dcmjs-dimse",
    "tests/interop/axe": "npm: tests of accessibility",
}
"""Folders with a package-lock.json, and their headings."""

UNNAMED: Final = {"khroma": "MIT", "memorystream": "MIT"}
"""Licences that package-lock.json does not have. They are in the files of the packages."""

TEXT: Final = """\
# Licences

Written by `make licences`. [Dependencies](dependencies.md) says what each direct dependency is for. The
wheel contains none of these packages: pip installs them from your index.

dicom-ingest itself has the MIT licence. Its wheel also carries files of htmx (0BSD), uPlot (MIT), Inter and
IBM Plex Mono (both OFL 1.1) for the console. Their licences are in the wheel, in
`dicom_ingest-*.dist-info/licenses`.

No dependency has the GPL. psycopg has the LGPL 3. A node with PostgreSQL imports it unchanged, as a separate
package that you can replace. The LGPL allows that to programs of any licence. A node with SQLite does
without it.

The system's OpenSSL (Apache 2.0), which the extensions are linked with, is not part of the wheel. Neither is
the system's libpq (PostgreSQL licence), which psycopg loads.
"""


def list_dependencies() -> dict[str, str]:
    """Return the installed packages that the project needs, directly or not, with their groups."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {
        "node": tables["project"]["dependencies"],
        **tables["project"]["optional-dependencies"],
        "dev": [*tables["dependency-groups"]["dev"], *tables["build-system"]["requires"]],
    }
    found: dict[str, str] = {}
    for group in GROUPS:
        seen: set[tuple[str, str]] = set()
        _follow([Requirement(text) for text in wanted[group]], group, found, seen)
    return dict(sorted(found.items()))


def _follow(
    requirements: Iterable[Requirement], group: str, found: dict[str, str], seen: set[tuple[str, str]]
) -> None:
    for requirement in requirements:
        name = normalize(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                texts = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue  # for another system or another Python
            found.setdefault(name, group)
            below = [Requirement(text) for text in texts]
            needed = [each for each in below if each.marker is None or each.marker.evaluate({"extra": extra})]
            _follow(needed, group, found, seen)


def list_npm_licences(folder: str) -> dict[str, str]:
    """Return the licence of each npm package that a folder needs, directly or not."""
    lock = json.loads((ROOT / folder / "package-lock.json").read_text())
    packages = {path.rpartition("node_modules/")[2]: each for path, each in lock["packages"].items() if path}
    return {name: each.get("license") or UNNAMED[name] for name, each in sorted(packages.items())}


def normalize(name: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_licences() -> dict[str, str]:
    """Return the licence of each installed package, in the words of its metadata."""
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed", "--with-system"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return {normalize(each["Name"]): each["License"] for each in json.loads(done.stdout)}


def write_page(path: Path) -> None:
    licences, groups = read_licences(), list_dependencies()
    lines = [TEXT]
    for group, heading in GROUPS.items():
        lines += [f"## {heading}", "| package | licence |", "|---|---|"]
        lines += [f"| {name} | {licences[name]} |" for name in groups if groups[name] == group]
        lines.append("")
    for folder, heading in NPM.items():
        lines += [f"## {heading}", "| package | licence |", "|---|---|"]
        lines += [f"| {name} | {licence} |" for name, licence in list_npm_licences(folder).items()]
        lines.append("")
    path.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
