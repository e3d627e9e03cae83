"""Send files to a remote with C-STORE, and tell the result of each."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ingest.config.model import TLS, Config
from ingest.config.reader import load_config
from ingest.errors import Cause, UnknownDestinationError
from ingest.library.node import Node
from ingest.requestor import send_files
from ingest.requestor.store_scu import Timeouts
from ingest.requestor.transport import Remote as Target
from ingest.tls.contexts import build_client_context


@dataclass(frozen=True, slots=True)
class Remote:
    """A node that instances are sent to.

    Attributes:
        host: Its name or address.
        port: Its TCP port.
        ae_title: Its AE title.
        calling_ae_title: The AE title that we use.
        tls: Our key, our certificate and the trusted certificates; None for plain DICOM.
        certificate: Pattern of the certificate that it must present, as in `[[destinations]]`; "" allows any
            trusted one.
        issuer: Pattern of the issuer of that certificate; "" allows any.
    """

    host: str
    port: int
    ae_title: str = "ANY-SCP"
    calling_ae_title: str = "INGEST"
    tls: TLS | None = None
    certificate: str = ""
    issuer: str = ""

    @classmethod
    def from_config(cls, config: Config | str | os.PathLike[str], name: str) -> Self:
        """Return a destination of a configuration.

        Args:
            config: The configuration, or its file.
            name: Name of the destination.

        Raises:
            ConfigError: The file has faults.
            UnknownDestinationError: The configuration has no destination of this name.
        """
        loaded = config if isinstance(config, Config) else load_config(config)
        for each in loaded.destinations:
            if each.name == name:
                return cls(
                    each.host,
                    each.port,
                    each.ae_title,
                    each.calling_ae_title or loaded.node.ae_title,
                    loaded.tls[each.tls] if each.tls else None,
                    each.certificate,
                    each.issuer,
                )
        known = ", ".join(each.name for each in loaded.destinations) or "none"
        raise UnknownDestinationError(f"no destination is called {name}; the configuration has: {known}")


@dataclass(frozen=True, slots=True)
class FileResult:
    """The result of one file.

    Attributes:
        path: The file.
        sop_instance_uid: Its SOP Instance UID; empty if the file could not be read.
        size_bytes: Length of its data set.
        is_stored: Whether the remote has the instance.
        status: DIMSE status of the response (PS3.7 Annex C); None without a response.
        error: Why the instance is not stored, or the remark of a warning; empty after a plain success.
        cause: The failure of the association, if that is why the instance is not stored.
    """

    path: Path
    sop_instance_uid: str
    size_bytes: int
    is_stored: bool
    status: int | None
    error: str
    cause: Cause | None


@dataclass(frozen=True, slots=True)
class SendReport:
    """The results of `send`.

    Attributes:
        results: One for each named file, and for each DICOM file that was found in a folder.
        skipped: Files in folders that are no DICOM files.
        seconds: Duration of sending.
    """

    results: tuple[FileResult, ...]
    skipped: tuple[Path, ...]
    seconds: float

    @property
    def stored(self) -> tuple[FileResult, ...]:
        """Results of the files that the remote has."""
        return tuple(result for result in self.results if result.is_stored)

    @property
    def failed(self) -> tuple[FileResult, ...]:
        """Results of the files that the remote does not have."""
        return tuple(result for result in self.results if not result.is_stored)


def send(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    destination: Remote | Node,
    *,
    associations: int = 1,
    connect_seconds: float = 10.0,
    response_seconds: float = 60.0,
) -> SendReport:
    """Send files, and all DICOM files in folders, each in the transfer syntax that it has.

    A file that the remote refuses, or that cannot be read, is a result and no exception. The function returns
    when each file has a result.

    Args:
        files: A file or folder, or several.
        destination: The remote, or a node of this library, which is called at its first listener.
        associations: Number of associations at a time.
        connect_seconds: Deadline for the connection, its TLS handshake and the association.
        response_seconds: Deadline for each response.

    Raises:
        AssociationError: No association could be established, so nothing was sent. Its `cause` tells why.
        ConfigError: Keys or certificates cannot be used.
        KeyboardInterrupt: Ctrl-C was pressed. The remote may have some of the files.
    """
    paths = [files] if isinstance(files, str | os.PathLike) else files
    remote = destination.remote if isinstance(destination, Node) else destination
    timeouts = Timeouts(connect_seconds=connect_seconds, response_seconds=response_seconds)
    target = _make_target(remote)
    summary = send_files.send_files(target, [Path(path) for path in paths], associations, timeouts=timeouts)
    if summary.is_interrupted:
        raise KeyboardInterrupt
    if summary.refusal is not None:
        raise summary.refusal
    return SendReport(
        tuple(_make_result(result) for result in summary.results),
        tuple(skipped.path for skipped in summary.skipped_files),
        summary.seconds,
    )


def _make_target(remote: Remote) -> Target:
    tls = remote.tls
    return Target(
        remote.host,
        remote.port,
        remote.ae_title,
        remote.calling_ae_title,
        build_client_context(tls) if tls is not None else None,
        certificate=remote.certificate,
        issuer=remote.issuer,
        is_anonymous=tls is not None and tls.certificate is None and tls.pkcs12 is None,
    )


def _make_result(result: send_files.FileResult) -> FileResult:
    return FileResult(
        result.path,
        result.sop_instance_uid,
        result.size,
        result.is_stored,
        result.status,
        result.error,
        result.cause,
    )
