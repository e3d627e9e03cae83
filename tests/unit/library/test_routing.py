"""`ingest.route`: files and data sets are routed as a node would route them."""

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import JPEG2000, CTImageStorage

import ingest
from tests.support.instances import Made

CONFIG = """
[[destinations]]
name = "archive"
ae_title = "ARCHIVE"
host = "10.0.0.7"
tls = false
[[destinations]]
name = "research"
ae_title = "RESEARCH"
host = "research.example.org"
tls = false
[[routes]]
name = "all"
to = ["archive"]
[[routes]]
name = "heads"
when = { body_part_examined = "HEAD", calling_ae = "CT*" }
to = ["research"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(CONFIG.replace("body_part_examined", "BodyPartExamined"))
    return path


def head(**attributes: object) -> pydicom.Dataset:
    image = pydicom.Dataset()
    image.SOPClassUID, image.SOPInstanceUID, image.BodyPartExamined = CTImageStorage, "1.2.3", "HEAD"
    image.update(attributes)
    return image


def test_data_set_goes_where_its_values_and_its_sender_say(config: Path) -> None:
    image = head()
    image.PixelData = b"\0" * 1000
    routing = ingest.route(config, image, calling_ae="CT7")
    assert routing.destinations == ("archive", "research")
    assert routing.matching == ("all", "heads")
    assert ingest.route(config, image, calling_ae="MR1").destinations == ("archive",)
    assert image.PixelData, "the data set of the caller is left alone"


def test_reason_is_in_the_conditions(config: Path) -> None:
    routing = ingest.route(ingest.load_config(config), head(), calling_ae="MR1")
    missed = [
        (each.key, each.values) for check in routing.routes for each in check.conditions if not each.holds
    ]
    assert missed == [("calling_ae", ("MR1",))]


def test_compressed_data_set_is_read_like_any_other(config: Path) -> None:
    image = head()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = JPEG2000
    image.PixelData = pydicom.encaps.encapsulate([b"\1\2"])
    assert ingest.route(config, image, calling_ae="CT7").destinations == ("archive", "research")


def test_instance_is_not_sent_back_to_its_sender_and_no_name_is_looked_up(config: Path) -> None:
    routing = ingest.route(config, head(), calling_ae="ARCHIVE", source_address="10.0.0.7")
    assert routing.destinations == ()
    assert "archive" in routing.remarks[0]
    # The name of this host could be looked up. Without that it is another host.
    assert ingest.route(config, head(), calling_ae="CT7", source_address="10.0.0.9").remarks == ()


def test_file_is_routed_by_what_the_node_has_written_into_it(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(Made(calling="ARCHIVE", source="dicom-tls://10.0.0.7:4711").file)
    assert ingest.route(config, path).destinations == ()
    assert ingest.route(config, path, calling_ae="CT1").destinations == ("archive",)


def test_other_file_is_an_error_that_says_so(config: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image")
    with pytest.raises(ingest.IngestError, match="cannot be routed"):
        ingest.route(config, tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        ingest.route(config, tmp_path / "missing.dcm")
