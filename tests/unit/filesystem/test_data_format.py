"""The version of a data folder."""

import json
import os
from pathlib import Path

import pytest

from ingest.build_info import read_version
from ingest.errors import BootError
from ingest.filesystem.data_format import FILE_NAME, read_data_format, require_data_format, write_data_format
from ingest.program import DATA_FORMAT


def test_folder_without_a_version_gets_one_that_only_its_group_can_read(tmp_path: Path) -> None:
    assert require_data_format(tmp_path) is None
    write_data_format(tmp_path)
    found = require_data_format(tmp_path)
    assert found is not None
    assert (found.format, found.program) == (DATA_FORMAT, read_version())
    assert os.listdir(tmp_path) == [FILE_NAME]
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o007 == 0


def test_version_is_written_once_and_again_by_another_release(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    write_data_format(tmp_path)
    written = path.stat().st_ino
    write_data_format(tmp_path)
    assert path.stat().st_ino == written
    path.write_text(json.dumps({"format": DATA_FORMAT, "program": "0.0.1"}))
    write_data_format(tmp_path)
    assert read_data_format(tmp_path) is not None
    assert json.loads(path.read_text())["program"] == read_version()


def test_newer_folder_is_refused_with_both_releases(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({"format": DATA_FORMAT + 1, "program": "99.1.0", "more": 1}))
    with pytest.raises(
        BootError, match=rf"format {DATA_FORMAT + 1} of dicom-ingest 99\.1\.0.*{read_version()}"
    ):
        require_data_format(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "\0",
        *(
            f'{{"format": {number}, "program": ""}}'
            for number in ('"x"', "Infinity", "1.9", "true", "0", "-1")
        ),
    ],
)
def test_file_without_a_version_is_no_version(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(BootError, match=FILE_NAME):
        read_data_format(tmp_path)
