"""Files below a folder, by names that others chose: nothing outside is opened or removed."""

import os
from pathlib import Path

import pytest

from ingest.errors import PathEscapesError
from ingest.filesystem import beneath
from ingest.filesystem.beneath import open_beneath, unlink_beneath


@pytest.fixture(params=["openat2", "stepwise"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beneath, "_missing", request.param == "stepwise")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inner = tmp_path / "root"
    (inner / "L0" / "ready").mkdir(parents=True)
    (inner / "L0" / "ready" / "1.dcm").write_text("inside")
    (inner / "id").write_text("id")
    (tmp_path / "outside").write_text("outside")
    (inner / "L1").symlink_to(tmp_path)
    (inner / "L0" / "link").symlink_to("../../outside")
    (inner / "L0" / "inward").symlink_to("ready")
    return inner


def test_file_below_the_folder_is_opened_and_removed(root: Path) -> None:
    fd = open_beneath(root, "L0/ready/1.dcm")
    assert os.read(fd, 10) == b"inside"
    assert not os.get_inheritable(fd)
    os.close(fd)
    unlink_beneath(root, "L0/ready/1.dcm")
    assert list((root / "L0" / "ready").iterdir()) == []
    with pytest.raises(FileNotFoundError):
        open_beneath(root, "L0/ready/1.dcm")
    with pytest.raises(FileNotFoundError):
        unlink_beneath(root, "L0/ready/1.dcm")
    unlink_beneath(root, "id")
    assert not (root / "id").exists()


def test_folder_itself_may_be_reached_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    os.close(open_beneath(tmp_path / "alias", "L0/ready/1.dcm"))


@pytest.mark.parametrize(
    "where",
    ["../outside", "/etc/passwd", "L0/../../outside", "L0/./ready/1.dcm", "L0//ready", "", "L1/outside",
     "L0/link", "L0/inward/1.dcm", "id/x", "L0/ready/\0", "L0/" + "x" * 300],
)  # fmt: skip
def test_name_that_leads_out_or_through_a_link_is_refused(root: Path, tmp_path: Path, where: str) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for attempt in (open_beneath, unlink_beneath):
        if attempt is unlink_beneath and where == "L0/link":
            continue  # removing a link removes nothing that it points to
        with pytest.raises(PathEscapesError):
            attempt(root, where)
    assert (tmp_path / "outside").read_text() == "outside"
    assert sorted(os.listdir("/proc/self/fd")) == before
