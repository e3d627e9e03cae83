"""Audit messages in tests: validation against the schema of PS3.15, and what a message says."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.support.peers import require_program

SCHEMA = Path(__file__).parents[1] / "vectors/audit/audit-message.rnc"


def validate(folder: Path, documents: list[bytes]) -> str:
    """Validate XML documents with jing; return its complaints, one for each line."""
    program = require_program("jing")
    # As printed, the schema has annotations where RELAX NG allows only comments: see the README there.
    schema = folder / "audit-message.rnc"
    schema.write_text(SCHEMA.read_text().replace("##", "#"))
    paths = []
    for number, document in enumerate(documents):
        paths.append(folder / f"message-{number}.xml")
        paths[-1].write_bytes(document)
    done = subprocess.run(
        [program, "-c", schema, *paths], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in done.stdout.splitlines() if "error" in line]
    assert bool(complaints) == bool(done.returncode), done.stdout + done.stderr
    return "\n".join(complaints)


@dataclass(frozen=True)
class Said:
    """What an audit message says."""

    root: ET.Element

    @classmethod
    def of(cls, xml: bytes) -> "Said":
        return cls(ET.fromstring(xml))

    @classmethod
    def of_syslog(cls, data: bytes) -> "Said":
        header, found, xml = data.partition(b"\xef\xbb\xbf")
        assert found, header
        return cls.of(xml)

    @property
    def event(self) -> str:
        return self.root.find("EventIdentification/EventID").get("originalText")

    @property
    def types(self) -> list[str]:
        return [code.get("originalText") for code in self.root.findall("EventIdentification/EventTypeCode")]

    @property
    def action(self) -> str:
        return self.root.find("EventIdentification").get("EventActionCode")

    @property
    def outcome(self) -> str:
        return self.root.find("EventIdentification").get("EventOutcomeIndicator")

    @property
    def users(self) -> list[str]:
        return [each.get("UserID") for each in self.root.findall("ActiveParticipant")]

    @property
    def requestors(self) -> list[str]:
        found = self.root.findall("ActiveParticipant[@UserIsRequestor='true']")
        return [each.get("UserID") for each in found]

    @property
    def addresses(self) -> list[str]:
        return [each.get("NetworkAccessPointID") for each in self.root.findall("ActiveParticipant")]

    @property
    def objects(self) -> list[str]:
        return [
            each.get("ParticipantObjectID") for each in self.root.findall("ParticipantObjectIdentification")
        ]

    @property
    def names(self) -> list[str]:
        found = self.root.findall("ParticipantObjectIdentification")
        return [each.findtext("ParticipantObjectName", "") for each in found]

    @property
    def classes(self) -> dict[str, int]:
        found = self.root.iter("SOPClass")
        return {each.get("UID", ""): int(each.get("NumberOfInstances")) for each in found}

    @property
    def accessions(self) -> list[str]:
        return [each.get("Number") for each in self.root.iter("Accession")]

    @property
    def detail(self) -> str:
        import base64

        return base64.b64decode(self.root.find(".//ParticipantObjectDetail").get("value")).decode()
