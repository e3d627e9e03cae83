"""What the sdist and the wheel hold, and what they must not hold."""

import configparser
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.install.artefacts import ROOT, Dist, read_members, run

PUBLIC_HOSTS = {
    "deb.debian.org",
    "security.debian.org",
    "pypi.org",
    "files.pythonhosted.org",
    "registry.npmjs.org",
}
"""Indexes that everybody uses. Documentation and lock files may name them."""

KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}")


def list_tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and not (ROOT / name).is_symlink()}


def list_index_hosts() -> set[str]:
    """Hosts that pip and apt of this machine load from."""
    pip = run([sys.executable, "-m", "pip", "config", "list"])
    apt = run(["apt-get", "indextargets", "--format", "$(REPO_URI)"])
    npm = Path.home() / ".npmrc"
    texts = [pip, apt, npm.read_text() if npm.is_file() else ""]
    urls = re.findall(r"[a-z+]+://[^\s'\"]+", " ".join(texts))
    return {urlsplit(url).hostname or "" for url in urls} - PUBLIC_HOSTS - {"", "localhost", "127.0.0.1"}


def list_machine_paths() -> set[bytes]:
    """Folders of this machine: the checkout, the home folder, the Python that builds, and local indexes."""
    pip = run([sys.executable, "-m", "pip", "config", "list"])
    indexes = {Path(path) for path in re.findall(r"(?:file://|[ '=])(/[^\s']+)", pip)}
    folders = {ROOT, Path.home(), Path(sys.base_prefix)} | indexes
    # Every Linux has these; programs and documentation may name them.
    common = {Path("/"), Path("/root"), Path("/usr"), Path("/usr/local")}
    return {f"{path}".encode() for path in folders - common if not path.is_relative_to("/etc")}


@pytest.fixture(scope="module")
def wheel(dist: Dist) -> dict[str, bytes]:
    return dict(read_members(dist.wheel))


@pytest.fixture(scope="module")
def sdist(dist: Dist) -> dict[str, bytes]:
    return dict(read_members(dist.sdist))


def test_sdist_has_every_file_of_the_checkout_and_the_two_links(dist: Dist, sdist: dict[str, bytes]) -> None:
    assert list_tracked() - set(sdist) == set()
    with tarfile.open(dist.sdist) as archive:
        links = {member.name.partition("/")[2]: member.linkname for member in archive if member.issym()}
        assert {member.uname for member in archive} == {"root"}
    assert links == {"ingest/ext": "../ext", "ingest/workers": "../workers"}


def test_sdist_has_nothing_that_was_built(sdist: dict[str, bytes]) -> None:
    more = {name for name in set(sdist) - list_tracked() if ".egg-info/" not in name}
    assert more == {"PKG-INFO", "setup.cfg", "ingest/_build.py"}


def test_wheel_has_all_that_a_node_needs(wheel: dict[str, bytes]) -> None:
    data = next(name for name in wheel if name.endswith(".data/data/share/man/man1/ingest.1"))
    share = data.removesuffix("man/man1/ingest.1")
    extensions = {f"ingest/ext/{path.stem}" for path in (ROOT / "ext").glob("*.pyx")}
    assert {name.partition(".")[0] for name in wheel if name.endswith(".so")} == extensions
    needed = {str(path.relative_to(ROOT)) for path in (ROOT / "ingest").rglob("*.py")}
    needed |= {
        f"ingest/{folder}/{path.name}" for folder in ("ext",) for path in (ROOT / folder).glob("*.pyi")
    }
    needed |= {f"ingest/{path.relative_to(ROOT)}" for path in (ROOT / "workers").rglob("*.py")}
    for folder in ("templates", "static"):
        files = (ROOT / "ingest/console" / folder).rglob("*")
        needed |= {str(path.relative_to(ROOT)) for path in files if path.is_file()}
    needed |= {"ingest/py.typed", "ingest/_build.py"}
    needed |= {
        f"{share}{name}"
        for name in (
            "man/man1/ingest-serve.1",
            "dicom-ingest/ingest.toml",
            "dicom-ingest/systemd/dicom-ingest.service",
            "dicom-ingest/grafana/dicom-ingest.json",
            "dicom-ingest/prometheus/dicom-ingest.rules.yml",
        )
    }
    assert needed - set(wheel) == set()
    assert not [
        name for name in wheel if name.endswith((".c", ".pyx")) or re.match(r"ingest/ext/.*html", name)
    ]
    assert not [name for name in wheel if name.startswith(("tests/", "benchmarks/", "ext/", "workers/"))]


def test_wheel_carries_the_licences_of_what_it_has(wheel: dict[str, bytes]) -> None:
    texts = {name.partition("/licenses/")[2] for name in wheel if ".dist-info/licenses/" in name}
    vendored = {path.parent.name for path in (ROOT / "ingest/console/static/vendor").glob("*/*")}
    assert "LICENSE" in texts
    assert vendored == {Path(name).parent.name for name in texts if re.search("/vendor/.*/LICENSE", name)}


def test_wheel_is_tagged_and_brings_no_openssl(dist: Dist, wheel: dict[str, bytes]) -> None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.search(rf"-{tag}-{tag}-manylinux_2_\d+_\w+\.whl$", dist.wheel.name)
    assert not [name for name in wheel if ".libs/" in name or "libssl" in name or "libcrypto" in name]


def test_metadata_names_the_extras_and_no_test_tool(wheel: dict[str, bytes]) -> None:
    text = next(content for name, content in wheel.items() if name.endswith(".dist-info/METADATA")).decode()
    assert set(re.findall(r"^Provides-Extra: (\S+)$", text, re.MULTILINE)) == {
        "console",
        "postgresql",
        "transcode",
    }
    base = {
        line.partition(": ")[2].split(">")[0].split("[")[0]
        for line in text.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert not base & {
        "starlette",
        "uvicorn",
        "psycopg",
        "numpy",
        "python-gdcm",
        "pytest",
        "cython",
        "click-man",
    }
    assert "License-Expression: MIT" in text


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_artefact_names_no_index_no_folder_of_this_machine_and_has_no_key(
    kind: str, request: pytest.FixtureRequest
) -> None:
    members: dict[str, bytes] = request.getfixturevalue(kind)
    words = list_machine_paths() | {host.encode() for host in list_index_hosts()}
    found = [f"{name}: {word!r}" for name, content in members.items() for word in words if word in content]
    assert found == []
    keys = [name for name, content in members.items() if KEY.search(content)]
    assert [name for name in keys if not name.startswith("tests/vectors/")] == []
    assert not [name for name in members if name.endswith((".key", ".p12", ".pfx", ".jks", ".netrc"))]


def test_extensions_know_no_folder_and_no_library_path(wheel: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in wheel.items():
        if not name.endswith(".so"):
            continue
        file = tmp_path / "extension.so"
        file.write_bytes(content)
        assert not re.search("RPATH|RUNPATH", run(["readelf", "--dynamic", file])), name
        folders = set(re.findall(rb"/(?:home|root|tmp|work|build|opt)/[\w./-]+", content))
        assert folders == set(), name


def test_entry_point_and_build_module_are_those_of_this_commit(wheel: dict[str, bytes]) -> None:
    text = next(content for name, content in wheel.items() if name.endswith("entry_points.txt")).decode()
    points = configparser.ConfigParser()
    points.read_string(text)
    assert dict(points["console_scripts"]) == {"ingest": "ingest.cli:main"}
    head = run(["git", "-C", ROOT, "rev-parse", "HEAD"]).strip()
    commit = re.search(r'COMMIT = "([0-9a-f]{12})', wheel["ingest/_build.py"].decode())
    assert commit is not None
    assert head.startswith(commit[1])
