"""Test the export of a modality with a real node: run it with pytest.

Replace `export_study` by a call of your own program. The node needs no network but this host, no root and no
other service, and it is ready in about a second.
"""

from collections.abc import Iterator

import pydicom
import pytest
from pydicom.uid import CTImageStorage, generate_uid
from pynetdicom import AE

import ingest


@pytest.fixture(scope="module")
def store() -> Iterator[ingest.Node]:
    """Run one node for all tests of this file."""
    with ingest.Node({"node": {"ae_title": "STORE"}, "peers": [{"ae_title": "CT7"}]}) as node:
        yield node


def export_study(host: str, port: int, images: list[pydicom.Dataset], ae_title: str = "CT7") -> list[int]:
    """Stand in for the program under test: send images with pynetdicom, and return the status of each."""
    entity = AE(ae_title)
    entity.add_requested_context(CTImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    association = entity.associate(host, port, ae_title="STORE")
    if not association.is_established:
        return []
    statuses = [association.send_c_store(image).Status for image in images]
    association.release()
    return statuses


def make_image(study: str, number: int) -> pydicom.Dataset:
    """Make a small image of a study."""
    image = pydicom.Dataset()
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = study, study
    image.PatientID, image.Modality, image.InstanceNumber = "P1", "CT", number
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return image


def test_every_image_of_a_study_is_exported_unchanged(store: ingest.Node) -> None:
    """Compare what the node has stored with what was exported."""
    study = generate_uid()
    images = [make_image(study, number) for number in (1, 2, 3)]

    assert export_study(store.host, store.port, images) == [0, 0, 0]

    stored = [one for one in store.wait_for_instances(3) if one.study_uid == study]
    assert {one.calling_ae for one in stored} == {"CT7"}
    for one in stored:
        assert one.path is not None
        kept = pydicom.dcmread(one.path)
        assert kept.PatientID == "P1"
        assert one.sop_instance_uid in {image.SOPInstanceUID for image in images}


def test_unknown_ae_title_is_rejected(store: ingest.Node) -> None:
    """The node knows CT7 alone."""
    assert export_study(store.host, store.port, [make_image(generate_uid(), 1)], ae_title="OTHER") == []
