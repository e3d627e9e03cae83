"""A scene for the console: a real node with senders and destinations, in most of the states that there are.

Browser tests and screenshots share it. All patients are invented.
"""

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from ingest.config.reader import load_config
from ingest.console.auth.roles import USER_ROLES_BY_WORD
from ingest.console.auth.users import UserFile
from tests.interop import dcmtk
from tests.support.nodes import Node, cleaned, eventually
from tests.support.pki import Material
from tests.support.ports import free_port

PASSWORD = "correct horse battery"

SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
}
ROOT = "1.2.826.0.1.3680043.10.1471"


@dataclass(frozen=True)
class Study:
    """An invented study."""

    number: int
    modality: str
    name: str
    patient_id: str
    description: str
    series: Sequence[str] = ("Series",)
    images: int = 3
    character_set: str = "ISO_IR 192"

    @property
    def uid(self) -> str:
        return f"{ROOT}.20261130.{self.number}"

    @property
    def accession(self) -> str:
        return f"A26{self.number:05d}"

    def write(self, folder: Path, *, pixel: int = 7, only: int | None = None) -> list[Path]:
        """Write its files; a different `pixel` makes other objects of the same UIDs."""
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for at, description in enumerate(self.series, 1):
            for image in range(1, self.images + 1):
                path = folder / f"{self.number}-{at}-{image}-{pixel}.dcm"
                self._write_image(path, at, description, image, pixel)
                found.append(path)
        return found[:only]

    def _write_image(self, path: Path, series: int, description: str, image: int, pixel: int) -> None:
        data = Dataset()
        data.SpecificCharacterSet = self.character_set
        data.SOPClassUID = SOP_CLASSES[self.modality]
        data.SOPInstanceUID = f"{self.uid}.{series}.{image}"
        data.StudyDate, data.StudyTime, data.Modality = "20261130", "081500", self.modality
        data.AccessionNumber, data.StudyDescription = self.accession, self.description
        data.SeriesDescription, data.StationName = description, f"{self.modality}-ROOM-1"
        data.PatientName, data.PatientID = self.name, self.patient_id
        data.PatientBirthDate, data.PatientSex = "19610402", "O"
        data.StudyInstanceUID, data.SeriesInstanceUID = self.uid, f"{self.uid}.{series}"
        data.StudyID, data.SeriesNumber, data.InstanceNumber = str(self.number), series, image
        data.InstitutionName = "Example Hospital"
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows = data.Columns = 64
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelData = struct.pack("<H", pixel * 100) * (64 * 64)
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        pydicom.dcmwrite(path, data, enforce_file_format=True)


STUDIES = (
    Study(
        1,
        "CT",
        "Lindqvist^Astrid",
        "P-204417",
        "CT thorax with contrast",
        ("Topogram", "Axial 1.0", "Coronal MPR"),
        6,
    ),
    Study(2, "MR", "Okafor^Chidi^^Dr", "P-118820", "MR knee left", ("PD sag", "T2 cor"), 4),
    Study(3, "US", "Yamada^Tarou", "P-330102", "US abdomen", ("Liver", "Kidneys"), 3),
    Study(4, "CT", "Brandão^Inês", "P-204418", "CT head", ("Axial 4.0",), 8),
    Study(5, "DX", "Müller^Jürgen", "P-551230", "Chest PA and lateral", ("PA", "LAT"), 1),
)
"""What the scene receives, oldest first."""


ROUTES = """
[[routes]]
name = "everything"
to = ["archive"]

[[routes]]
name = "old viewer"
when = { modality = ["CT", "MR"] }
to = ["legacy"]

[[routes]]
name = "night shift"
when = { modality = "CT", calling_ae = "CT*" }
to = ["telerad"]

[[routes]]
name = "study on knees"
when = { modality = "MR", Rows = { min = 32 } }
to = ["research"]
"""


@dataclass
class Scene:
    """The running scene.

    Attributes:
        node: The node with the console.
        archive: A destination that takes everything.
        legacy: A destination that takes only CT.
        folder: Holds the files that were sent.
    """

    node: Node
    archive: Node
    legacy: Node
    folder: Path
    port: int
    material: Material
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def send(self, files: Sequence[Path], calling: str, certificate: str = "peer") -> str:
        """Send files over TLS as DCMTK's storescu does; returns what it printed."""
        options = [*dcmtk.authenticated(self.material, certificate), "-aet", calling, "-aec", "INGEST"]
        return dcmtk.storescu(self.node.tls_port, *options, files=files).stdout


def _destination(name: str, port: int, **keys: object) -> str:
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return (
        f'[[destinations]]\nname = "{name}"\nae_title = "{name.upper()}"\nhost = "localhost"\nport = {port}\n'
        f'tls = "node"\n{more}'
    )


@contextlib.contextmanager
def running_scene(folder: Path, material: Material) -> Iterator[Scene]:
    """Start the node, its console and its destinations, and let studies arrive."""
    archive, legacy = (Node(folder / name, material) for name in ("archive", "legacy"))
    node, port = Node(folder / "node", material), free_port()
    with contextlib.ExitStack() as stack:
        for each in (archive, legacy, node):
            stack.enter_context(cleaned(each))
        one = {
            "receive": "[receive]\nprocesses = 1\nmin_free_bytes = 0",
            "workers": "[workers]\npersist = 1\nforward = 0",
        }
        archive.start(**one)
        legacy.start(**{**one, "receive": one["receive"] + f'\nsop_classes = ["{SOP_CLASSES["CT"]}"]'})
        node.configure(
            node='[node]\nname = "imaging-node-1"\nae_title = "INGEST"\ndata_dir = "var"\ndrain_seconds = 5\n'
            "stable_seconds = 20",
            peers="".join(
                f'[[peers]]\nae_title = "{name}"\n' for name in ("CT1", "MR2", "US3", "DX4", "ANGIO5")
            ),
            routes="\n".join(
                (
                    _destination("archive", archive.tls_port),
                    _destination("legacy", legacy.tls_port, retry_first_seconds=0.1, max_attempts=2),
                    _destination("research", archive.tls_port),
                    _destination("telerad", free_port(), connect_seconds=2.0, retry_max_seconds=3600),
                    ROUTES,
                )
            ),
            console=f"[console]\nport = {port}",
            ledger='[ledger]\nindex = "full"' if _has_index() else "",
        )
        config = load_config(node.config_path)
        for word, role in USER_ROLES_BY_WORD.items():
            UserFile(config.console_dir).add_user(word, role, PASSWORD)
        node.start()
        scene = Scene(node, archive, legacy, folder, port, material)
        eventually(lambda: node.events("console_ready"), 30, "the console is ready")
        yield scene


def _has_index() -> bool:
    from ingest.config.model import LedgerSettings

    return "index" in LedgerSettings.model_fields


def fill(scene: Scene) -> None:
    """Let the studies arrive, and then a conflict, a refused caller and a pause."""
    from ingest.operations.deliveries import pause_destination

    config = load_config(scene.node.config_path)
    pause_destination(config, "research", "operator", "new scanner is being set up")
    senders = {"CT": "CT1", "MR": "MR2", "US": "US3", "DX": "DX4"}
    for study in STUDIES:
        scene.send(study.write(scene.folder / "files"), senders[study.modality])
    total = sum(len(study.series) * study.images for study in STUDIES)
    eventually(lambda: len(scene.node.stored()) == total, 60, "everything is stored")
    scene.send(STUDIES[0].write(scene.folder / "conflict", pixel=9, only=1), "CT1")
    scene.send(STUDIES[4].write(scene.folder / "files"), "UNKNOWN9")
    scene.send(STUDIES[4].write(scene.folder / "files"), "DX4", "stranger")
    eventually(
        lambda: scene.node.query("SELECT 1 FROM instances WHERE state = 'quarantined'"),
        30,
        "the conflict is set aside",
    )
    eventually(lambda: scene.node.deliveries().get("dead"), 60, "the old viewer refuses MR")
    eventually(
        lambda: scene.node.query("SELECT 1 FROM circuits WHERE state = 'open' AND destination = 'telerad'"),
        60,
        "telerad is away",
    )
