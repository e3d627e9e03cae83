"""Other receivers, each as its makers document it, over TLS with required client certificates.

Logs go to a file beside the data at the level that each has by itself. Nothing is tuned but the longest PDU
(131072 bytes, as far as each takes it) and, where one limits it, the number of associations at a time.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from benchmarks.accounting import Group
from benchmarks.receivers import (
    Durability,
    Facts,
    Pki,
    Receiver,
    Target,
    Unavailable,
    free_port,
    target_of,
    wait_listening,
)
from ingest.tls.keys import pairs

LARGEST_PDU = 131072
PASSWORD = b"benchmark"
VERSION_SECONDS = 20
MORE_FOLDERS = ("/usr/local/sbin", "/usr/sbin")  # servers, which shells of mere users do not look for


@dataclass(frozen=True, slots=True)
class FileReceiver:
    """A receiver that keeps each instance in one file of one folder.

    Attributes:
        files: The folder of the instances.
        name_of: The file's name for a SOP instance UID.
    """

    facts: Facts
    target: Target
    group: Group
    folder: Path
    files: Path
    name_of: Callable[[str], str]

    def stored(self) -> int:
        """How many files there are."""
        return len(os.listdir(self.files))

    def missing(self, uids: Iterable[str]) -> list[str]:
        """Those without a file."""
        there = set(os.listdir(self.files))
        return [uid for uid in uids if self.name_of(uid) not in there]

    def clear(self) -> None:
        """Remove the files."""
        for name in os.listdir(self.files):
            (self.files / name).unlink()


@contextlib.contextmanager
def dcmtk(base: Path, keys: Pki, *, durability: Durability) -> Iterator[Receiver]:  # noqa: ARG001
    """DCMTK's storescp with a process for each association; it never syncs."""
    with _dcmtk("dcmtk", base, keys, {}) as receiver:
        yield receiver


@contextlib.contextmanager
def dcmtk_nodelay(base: Path, keys: Pki, *, durability: Durability) -> Iterator[Receiver]:  # noqa: ARG001
    """Run DCMTK with TCP_NODELAY=1 in its environment, which DCMTK reads."""
    with _dcmtk("dcmtk-nodelay", base, keys, {"TCP_NODELAY": "1"}) as receiver:
        yield receiver


@contextlib.contextmanager
def _dcmtk(name: str, base: Path, keys: Pki, variables: dict[str, str]) -> Iterator[Receiver]:
    program = find_program("storescp", lambda path: not _is_dcm4che(path))
    version = re.search(r"v(\S+)", said_by(program, "--version"))
    port = free_port()
    command = [program, "--fork", "--max-pdu", str(LARGEST_PDU), "--bit-preserving"]
    command += ["--aetitle", "ANY-SCP", "--output-directory", str(base / "files")]
    command += ["+tls", str(keys.key), str(keys.certificate), "--require-peer-cert", "+cf", str(keys.trusted)]
    facts = Facts(name, version[1] if version else "unknown", durable=False)
    # Otherwise a variable of whoever runs the benchmark would decide about Nagle's algorithm.
    environment = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"} | variables
    command.append(str(port))
    target = target_of(keys, port)
    with _run(facts, base, command, target, lambda uid: f"CT.{uid}", environment) as receiver:
        yield receiver


@contextlib.contextmanager
def dcm4che(base: Path, keys: Pki, *, durability: Durability) -> Iterator[Receiver]:  # noqa: ARG001
    """dcm4che's storescp, where a user has it on the PATH; it never syncs."""
    program = find_program("storescp", _is_dcm4che)
    version = re.search(r"dcm4che-tool-storescp-(\S+?)\.jar", Path(program).read_text(errors="replace"))
    base.mkdir(parents=True, exist_ok=True)
    own, trusted = _java_stores(base, keys)
    port = free_port()
    command = [program, "--bind", f"ANY-SCP@127.0.0.1:{port}", "--directory", str(base / "files")]
    command += ["--max-pdulen-rcv", str(LARGEST_PDU), "--tls13", "--tls-cipher", "TLS_AES_256_GCM_SHA384"]
    for option, store in (("key-store", own), ("trust-store", trusted)):
        command += [f"--{option}", str(store), f"--{option}-type", "PKCS12"]
        command += [f"--{option}-pass", PASSWORD.decode()]
    facts = Facts("dcm4che", version[1] if version else "unknown", durable=False)
    with _run(facts, base, command, target_of(keys, port), lambda uid: uid) as receiver:
        yield receiver


@contextlib.contextmanager
def pynetdicom(
    base: Path, keys: Pki, *, durability: Durability, to: Target | None = None
) -> Iterator[Receiver]:
    """Run pynetdicom: a thread for each association, and a handler that writes each data set.

    With `to`, another thread sends it all on over one association.
    """
    try:
        version = metadata.version("pynetdicom")
    except metadata.PackageNotFoundError:
        raise Unavailable("pynetdicom is not installed") from None
    port = free_port()
    script = Path(__file__).with_name("pynetdicom_scp.py")
    command = [sys.executable, str(script), str(port), str(base / "files"), str(LARGEST_PDU)]
    command += [str(keys.certificate), str(keys.key), str(keys.trusted), durability]
    if to is not None:
        command += [to.host, str(to.port), to.called_ae, "FORWARD"]
    facts = Facts("pynetdicom", version, durable=durability == "fsync")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    target = target_of(keys, port)
    with _run(facts, base, command, target, lambda uid: f"{uid}.dcm", environment) as receiver:
        yield receiver


@contextlib.contextmanager
def _run(  # noqa: PLR0917 - one call site a receiver
    facts: Facts,
    base: Path,
    command: list[str],
    target: Target,
    name_of: Callable[[str], str],
    environment: dict[str, str] | None = None,
) -> Iterator[FileReceiver]:
    files = base / "files"
    files.mkdir(parents=True, exist_ok=True)
    log = base / "log"
    options: dict[str, Any] = {"env": environment} if environment else {}
    with Group(facts.name) as group:
        with log.open("wb") as output:
            process = group.popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=base, **options
            )
        wait_listening(target.port, process, log)
        yield FileReceiver(facts, target, group, base, files, name_of)


def find_program(name: str, fits: Callable[[Path], bool] = lambda _: True) -> str:
    """Find the first program of a name on the PATH that fits. DCMTK and dcm4che share names.

    Raises:
        Unavailable: There is none.
    """
    for folder in (*os.environ.get("PATH", os.defpath).split(os.pathsep), *MORE_FOLDERS):
        path = Path(folder) / name
        if path.is_file() and os.access(path, os.X_OK) and fits(path):
            return str(path)
    raise Unavailable(f"no such {name} on the PATH")


def said_by(program: str, option: str) -> str:
    """Return the output of a program with one option."""
    done = subprocess.run(
        [program, option], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False
    )
    return done.stdout + done.stderr


def _is_dcm4che(path: Path) -> bool:
    """dcm4che's programs are shell scripts that name their Java class."""
    with path.open("rb") as file:
        return b"org.dcm4che" in file.read(65536)


def _java_stores(base: Path, keys: Pki) -> tuple[Path, Path]:
    """Write the key pair and the trusted certificates as PKCS #12 files that Java reads."""
    pair = pairs.read_pair(keys.certificate.with_suffix(""))
    encryption = BestAvailableEncryption(PASSWORD)
    own, trusted = base / "own.p12", base / "trusted.p12"
    own.write_bytes(
        pkcs12.serialize_key_and_certificates(b"node", pair.private_key, pair.certificate, None, encryption)
    )
    certificates = x509.load_pem_x509_certificates(keys.trusted.read_bytes())
    named = [
        pkcs12.PKCS12Certificate(certificate, str(number).encode())
        for number, certificate in enumerate(certificates)
    ]
    trusted.write_bytes(pkcs12.serialize_java_truststore(named, encryption))
    return own, trusted


__all__ = ["dcm4che", "dcmtk", "dcmtk_nodelay", "find_program", "pynetdicom", "said_by"]
