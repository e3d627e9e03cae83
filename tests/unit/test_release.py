"""The program behind `make release`: it refuses what is not ready, and changes nothing without --tag."""

import datetime
import importlib.util
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from ingest.build_info import Commit, format_build_module

ROOT = Path(__file__).parents[2]
TODAY = datetime.date(2026, 12, 1)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["release"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository that is ready for the release 1.2.3."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "pyproject.toml").write_text('[project]\nname = "dicom-ingest"\nversion = "1.2.3"\n')
    (root / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n## 1.2.3 (2026-12-01)\n\n- A point.\n"
    )
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "release: 1.2.3")
    return root


WHEEL = "dicom_ingest-1.2.3-cp311-cp311-linux_x86_64.whl"
SDIST = "dicom_ingest-1.2.3.tar.gz"


def build_artefacts(dist: Path, commit: str) -> None:
    """Make an sdist and a wheel that have nothing but the module of `ingest.build_info`."""
    dist.mkdir(exist_ok=True)
    module = format_build_module(Commit(commit, "2026-12-01")).encode()
    with zipfile.ZipFile(dist / WHEEL, "w") as wheel:
        wheel.writestr("ingest/_build.py", module)
    with tarfile.open(dist / SDIST, "w:gz") as sdist:
        member = tarfile.TarInfo("dicom_ingest-1.2.3/ingest/_build.py")
        member.size = len(module)
        sdist.addfile(member, io.BytesIO(module))


def build_package(dist: Path, commit: str) -> None:
    """Make a Debian package with that module alone."""
    root = dist.parent / "package"
    module = root / "usr/lib/dicom-ingest/lib/python3.11/site-packages/ingest/_build.py"
    module.parent.mkdir(parents=True)
    module.write_text(format_build_module(Commit(commit, "2026-12-01")))
    (root / "DEBIAN").mkdir()
    fields = "Package: dicom-ingest\nVersion: 1.2.3\nArchitecture: all\nMaintainer: T <t@example.org>\n"
    (root / "DEBIAN/control").write_text(f"{fields}Description: test\n")
    subprocess.run(["dpkg-deb", "--build", root, dist / "dicom-ingest_1.2.3_all.deb"], check=True)


def faults(program: ModuleType, tree: Path) -> dict[str, str]:
    return {name: fault for name, fault in program.check_release(tree, TODAY) if fault}


def commit_change(tree: Path, name: str, before: str, after: str) -> None:
    path = tree / name
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    git(tree, "commit", "-q", "-a", "-m", "change")


def test_tree_that_is_ready_has_no_faults(program: ModuleType, tree: Path) -> None:
    assert faults(program, tree) == {}


@pytest.mark.parametrize(
    ("name", "before", "after", "check", "said"),
    [
        ("pyproject.toml", "1.2.3", "1.2.4", "changelog", 'rename "Unreleased" to "1.2.4 (2026-12-01)"'),
        ("pyproject.toml", "1.2.3", "1.2", "version", "1.2 is no version"),
        ("CHANGELOG.md", "2026-12-01", "2026-11-01", "changelog", "write 2026-12-01"),
        ("CHANGELOG.md", " (2026-12-01)", "", "changelog", "has the date none"),
        ("CHANGELOG.md", "Unreleased\n", "Unreleased\n\n- Late.\n", "changelog", "move its points to 1.2.3"),
        ("CHANGELOG.md", "- A point.\n", "", "changelog", "has no points"),
    ],
)
def test_versions_and_dates_have_to_agree(
    program: ModuleType, tree: Path, name: str, before: str, after: str, check: str, said: str
) -> None:
    commit_change(tree, name, before, after)
    assert said in faults(program, tree)[check]


def test_open_changes_other_branches_and_old_tags_are_refused(program: ModuleType, tree: Path) -> None:
    (tree / "new.py").write_text("")
    assert "new.py" in faults(program, tree)["clean tree"]
    (tree / "new.py").unlink()
    git(tree, "tag", "v1.2.3")
    git(tree, "switch", "-q", "-c", "work")
    found = faults(program, tree)
    assert found.keys() == {"branch", "tag"}


def test_dry_run_builds_and_lists_hashes_and_tags_nothing(
    program: ModuleType, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dist = tmp_path / "dist"

    head = git(tree, "rev-parse", "HEAD")[:12]

    program.release(tree, dist, tags=False, today=TODAY, build=lambda: build_artefacts(dist, head))

    printed = capsys.readouterr().out
    assert "dry run: nothing was tagged" in printed
    assert git(tree, "tag").strip() == ""
    check = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=dist, capture_output=True, check=False)
    assert check.returncode == 0
    assert git(tree, "status", "--porcelain") == ""


def test_failed_check_builds_nothing_and_wrong_artefacts_are_no_release(
    program: ModuleType, tree: Path, tmp_path: Path
) -> None:
    (tree / "open.txt").write_text("")
    with pytest.raises(program.ReleaseError, match="1 checks failed"):
        program.release(tree, tmp_path, tags=False, today=TODAY, build=lambda: pytest.fail("it was built"))
    (tree / "open.txt").unlink()
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / "dicom_ingest-1.2.3.tar.gz").write_text("")
    with pytest.raises(program.ReleaseError, match="no wheel"):
        program.release(tree, dist, tags=False, today=TODAY, build=lambda: None)
    (dist / "dicom_ingest-1.2.3-py3-none-any.whl").write_text("")
    (dist / "dicom_ingest-1.2.2.tar.gz").write_text("")
    with pytest.raises(program.ReleaseError, match="another version"):
        program.release(tree, dist, tags=False, today=TODAY, build=lambda: None)


def test_artefacts_of_another_commit_are_not_tagged(program: ModuleType, tree: Path, tmp_path: Path) -> None:
    # Given artefacts of a dry run, and a commit after it
    dist = tmp_path / "dist"
    built = git(tree, "rev-parse", "HEAD")[:12]
    build_artefacts(dist, built)
    git(tree, "commit", "-q", "--allow-empty", "-m", "late change")
    head = git(tree, "rev-parse", "HEAD")[:12]

    def tag() -> None:
        program.release(tree, dist, tags=True, today=TODAY, build=lambda: pytest.fail("it was built"))

    # Then there is no tag
    with pytest.raises(program.ReleaseError, match=f"built from {built}, and {head} is checked out"):
        tag()
    # And none for artefacts of changed files, and of no known commit
    for name, said in ((f"{head}-dirty", f"{head}-dirty"), ("unknown", "does not say")):
        build_artefacts(dist, name)
        with pytest.raises(program.ReleaseError, match=said):
            tag()
    # And none if only the package is older
    build_artefacts(dist, head)
    build_package(dist, built)
    with pytest.raises(program.ReleaseError, match=r"\.deb was built from"):
        tag()
    assert git(tree, "tag").strip() == ""


def test_changelog_of_this_project_can_be_read(program: ModuleType) -> None:
    sections = program.read_changelog((ROOT / "CHANGELOG.md").read_text())
    assert sections
    for section in sections:
        assert section.text or section.version == "Unreleased"
        assert section.version == "Unreleased" or datetime.date.fromisoformat(section.date)
