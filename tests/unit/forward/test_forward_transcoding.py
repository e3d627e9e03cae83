"""Transfer syntaxes that a remote is offered, and the data sets that it gets, over TLS."""

import io

import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.support.drains import drain_once
from tests.support.forwarding import Forwarding
from tests.support.instances import CT, EXPLICIT, IMPLICIT, Made
from tests.support.peers import PynetdicomRemote, Stored

JPEG = "1.2.840.10008.1.2.4.50"
BIG = "1.2.840.10008.1.2.2"


def read(stored: Stored) -> Dataset:
    meta = b"\0" * 128 + b"DICM\2\0\x10\0UI" + bytes([len(stored.transfer_syntax) + 1 & ~1, 0])
    meta += stored.transfer_syntax.encode() + b"\0" * (len(stored.transfer_syntax) & 1)
    return pydicom.dcmread(io.BytesIO(meta + stored.data_set), force=True)


@pytest.mark.parametrize(
    ("settings", "accepted", "sent"),
    [
        ({}, [IMPLICIT], {"explicit": IMPLICIT, "implicit": IMPLICIT}),
        ({}, [EXPLICIT, IMPLICIT], {"explicit": EXPLICIT, "implicit": IMPLICIT}),
        ({"preferred_transfer_syntax": BIG}, [IMPLICIT, BIG], {"explicit": BIG, "implicit": IMPLICIT}),
        (
            {"transcode": "always", "preferred_transfer_syntax": "ImplicitVRLittleEndian"},
            [EXPLICIT, IMPLICIT],
            {"explicit": IMPLICIT, "implicit": IMPLICIT},
        ),
    ],
)
def test_remote_gets_what_it_accepts_over_one_association(
    forwarding: Forwarding, settings: dict[str, str], accepted: list[str], sent: dict[str, str]
) -> None:
    made = {"explicit": Made(sop="1.2.3.1"), "implicit": Made(sop="1.2.3.2", syntax=IMPLICIT)}
    with PynetdicomRemote([(CT, accepted)], forwarding.tls) as remote:
        forwarding.add(remote.port, **{"transcode": "if-refused"} | settings)
        forwarding.record(*made.values())
        drain_once(forwarding)
    assert forwarding.states() == {"delivered": 2}
    assert remote.associations == 1
    arrived = {stored.sop_instance: stored for stored in remote.stored}
    for name, one in made.items():
        stored = arrived[one.sop]
        assert stored.transfer_syntax == sent[name]
        if stored.transfer_syntax == one.syntax:
            assert stored.data_set == one.data_set
            continue
        data_set = read(stored)
        assert data_set.PixelData == one.pixels
        assert (data_set.SOPInstanceUID, data_set.StudyInstanceUID) == (one.sop, one.study)
        keyword = {IMPLICIT: "ImplicitVRLittleEndian", BIG: "ExplicitVRBigEndian"}[sent[name]]
        assert forwarding.row(one.sop).last_error == f"sent in {keyword}"


def test_attributes_change_before_the_transfer_syntax_does(forwarding: Forwarding) -> None:
    with PynetdicomRemote([(CT, [IMPLICIT])], forwarding.tls) as remote:
        forwarding.add(remote.port, transcode="if-refused", set={"PatientID": "NEW"})
        forwarding.record(Made())
        drain_once(forwarding)
    [stored] = remote.stored
    assert read(stored).PatientID == "NEW"
    assert read(stored).PixelData == Made().pixels
    said = "changed for this destination: PatientID; sent in ImplicitVRLittleEndian"
    assert forwarding.row(Made().sop).last_error == said


def test_a_data_set_that_cannot_be_encoded_is_dead_with_its_reason(forwarding: Forwarding) -> None:
    """The remote refuses the transfer syntax of the one, and the other is damaged."""
    video, damaged, sound = (
        Made(sop="1.2.3.1", syntax=JPEG),
        Made(sop="1.2.3.2", pixels=b""),
        Made(sop="1.2.3.3"),
    )
    with PynetdicomRemote([(CT, [IMPLICIT])], forwarding.tls) as remote:
        forwarding.add(remote.port, transcode="if-refused")
        forwarding.record(video, damaged, sound)
        path = forwarding.config.store_root / f"{damaged.sop}.dcm"
        path.write_bytes(path.read_bytes()[:-12] + b"\xff" * 12)  # as long as the ledger says
        drain_once(forwarding)
    assert forwarding.states() == {"delivered": 1, "dead": 2}
    assert [stored.sop_instance for stored in remote.stored] == [sound.sop]
    said = str(forwarding.row(video.sop).last_error)
    assert said.startswith(f"no context accepted for {CT} in {JPEG}")
    said = str(forwarding.row(damaged.sop).last_error)
    assert said.startswith(
        "the remote refuses ExplicitVRLittleEndian, and the data set cannot be transcoded: "
    )
    assert "(FFFF,FFFF) has no VR" in said
