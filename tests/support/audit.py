"""Audit messages in tests: validation against the schema of PS3.15, and what a message says."""

import base64
import json
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.support.peers import require_program, wait_for
from tests.support.pki import Material
from tests.support.ports import free_port

SCHEMA = Path(__file__).parents[1] / "vectors/audit/audit-message.rnc"


def validate(folder: Path, documents: list[bytes]) -> str:
    """Validate XML documents with jing; return its complaints, one for each line."""
    program = require_program("jing")
    paths = []
    for number, document in enumerate(documents):
        paths.append(folder / f"message-{number}.xml")
        paths[-1].write_bytes(document)
    done = subprocess.run(
        [program, "-c", SCHEMA, *paths], capture_output=True, text=True, timeout=60, check=False
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
        return base64.b64decode(self.root.find(".//ParticipantObjectDetail").get("value")).decode()


class Rsyslog:
    """An audit record repository: rsyslog, which takes syslog over TLS with a trusted client certificate."""

    def __init__(self, folder: Path, material: Material, name: str = "remote", driver: str = "ossl") -> None:
        """Describe it; `start` runs it.

        Args:
            folder: Holds its configuration, and `received`.
            material: Its pair is `name`; it trusts `material.trusted`.
            name: Name of its pair.
            driver: Its TLS: "ossl" or "gtls".
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.received_file = folder / "received"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "rsyslog.conf").write_text(
            f'global(workDirectory="{folder}" maxMessageSize="64k" defaultNetstreamDriver="{driver}"\n'
            f'  defaultNetstreamDriverCAFile="{material.trusted}"\n'
            f'  defaultNetstreamDriverCertFile="{material.certificate(name)}"\n'
            f'  defaultNetstreamDriverKeyFile="{material.key(name)}")\n'
            f'module(load="imtcp" streamDriver.name="{driver}" streamDriver.mode="1"\n'
            '  streamDriver.authMode="x509/certvalid")\n'
            f'input(type="imtcp" port="{self.port}" address="127.0.0.1")\n'
            'module(load="imudp")\n'
            f'input(type="imudp" port="{self.port}" address="127.0.0.1")\n'
            'template(name="raw" type="string" string="%rawmsg%\\n")\n'
            f'action(type="omfile" file="{self.received_file}" template="raw")\n'
        )

    def start(self) -> None:
        """Run it until `stop`."""
        command = [require_program("rsyslogd"), "-n", "-f", self.folder / "rsyslog.conf"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-i", self.folder / "pid"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._listens, 20, "rsyslog")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    @property
    def received(self) -> list[bytes]:
        """The messages, each with its header. A line that rsyslog is still writing does not count."""
        if not self.received_file.exists():
            return []
        return self.received_file.read_bytes().rpartition(b"\n")[0].splitlines()

    @property
    def said(self) -> list[Said]:
        return [Said.of_syslog(line) for line in self.received]

    def _listens(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError((self.folder / "log").read_text())
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


def audit_section(port: int, **keys: object) -> str:
    """`[audit]` as TOML."""
    values = {"host": "localhost", "port": port, "idle_seconds": 1, **keys}
    return "[audit]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
