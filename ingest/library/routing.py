"""Route an instance as a node would, without sending it."""

import io
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ingest.config.model import Config, Destination
from ingest.config.reader import load_config
from ingest.dicom.file_header import InstanceHeader, read_instance_header
from ingest.errors import IngestError, PeerError
from ingest.routing.node_router import NodeRouter
from ingest.routing.router import RoutingDecision

if TYPE_CHECKING:
    from pydicom import Dataset

_PIXEL_GROUP = 0x7FE0


@dataclass(frozen=True, slots=True)
class ConditionCheck:
    """A condition of a route.

    Attributes:
        key: The key in `when`.
        values: What the instance has.
        holds: Whether the condition holds.
    """

    key: str
    values: tuple[str, ...]
    holds: bool


@dataclass(frozen=True, slots=True)
class RouteCheck:
    """A route that was evaluated.

    Attributes:
        route: Its name, or `routes[NUMBER]`.
        matches: Whether all its conditions hold.
        conditions: The evaluated conditions. Evaluation ends at the first one that does not hold.
    """

    route: str
    matches: bool
    conditions: tuple[ConditionCheck, ...]


@dataclass(frozen=True, slots=True)
class Routing:
    """Where an instance would go.

    Attributes:
        destinations: Names of the destinations, in the order of the configuration.
        routes: Each route that was evaluated.
        held: Destinations whose delivery a person releases (`hold = true` in a route).
        remarks: Why destinations were left out, such as the one that the instance came from.
    """

    destinations: tuple[str, ...]
    routes: tuple[RouteCheck, ...]
    remarks: tuple[str, ...]
    held: tuple[str, ...] = ()

    @property
    def matching(self) -> tuple[str, ...]:
        """Names of the routes that match."""
        return tuple(each.route for each in self.routes if each.matches)


def route(
    config: Config | str | os.PathLike[str],
    instance: "str | os.PathLike[str] | Dataset",
    *,
    calling_ae: str | None = None,
    called_ae: str | None = None,
    source_address: str | None = None,
    certificate: Collection[str] | None = None,
) -> Routing:
    """Decide where an instance would go. Nothing is stored or sent, and no name server is asked.

    Args:
        config: The configuration with the routes, or its file.
        instance: A Part 10 file, or a data set of pydicom.
        calling_ae: AE title of the sender; None takes that of the file, as a node has written it.
        called_ae: AE title that the sender calls; None likewise.
        source_address: IP address of the sender; None likewise. An instance is not sent back to the
            destination that it came from. Destinations are compared by their address here, not by a name.
        certificate: SHA-256 fingerprint, subject and alternative names of the sender's certificate; None
            likewise.

    Raises:
        ConfigError: The file of the configuration has faults.
        IngestError: The instance is no DICOM, or cannot be read.
        OSError: The file cannot be opened.
    """
    loaded = config if isinstance(config, Config) else load_config(config)
    router = NodeRouter(loaded, _list_addresses)
    changes: dict[str, Any] = {
        "calling_ae": calling_ae,
        "called_ae": called_ae,
        "source": None if source_address is None else f"dicom://[{source_address}]:0",
        "certificate": None if certificate is None else tuple(certificate),
    }
    header = _read_header(instance, router.tags)
    given = {name: value for name, value in changes.items() if value is not None}
    return _make_routing(router.route_instance(replace(header, **given)))


def _list_addresses(destination: Destination) -> list[str]:
    return [destination.host]


def _read_header(instance: "str | os.PathLike[str] | Dataset", tags: tuple[int, ...]) -> InstanceHeader:
    if isinstance(instance, str | os.PathLike):
        fd = os.open(instance, os.O_RDONLY | os.O_CLOEXEC)
    else:
        # The reader of headers takes a file.
        fd = os.memfd_create("instance", os.MFD_CLOEXEC)
    try:
        if not isinstance(instance, str | os.PathLike):
            os.write(fd, _encode(instance))
        return read_instance_header(fd, os.fstat(fd).st_size, tags)
    except PeerError as error:
        raise IngestError(f"the instance cannot be routed: {error}") from error
    finally:
        os.close(fd)


def _encode(instance: "Dataset") -> bytes:
    """Write a data set without its pixels as a Part 10 file."""
    from pydicom import Dataset, dcmwrite  # noqa: PLC0415 - slow to import, and only needed for data sets
    from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: PLC0415
    from pydicom.uid import ExplicitVRLittleEndian  # noqa: PLC0415

    known = getattr(instance, "file_meta", None) or FileMetaDataset()
    header = Dataset({tag: instance[tag] for tag in instance.keys() if tag.group < _PIXEL_GROUP})  # noqa: SIM118
    meta = FileMetaDataset(known)
    meta.TransferSyntaxUID = known.get("TransferSyntaxUID", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = instance.get("SOPClassUID", "")
    meta.MediaStorageSOPInstanceUID = instance.get("SOPInstanceUID", "")
    file = io.BytesIO()
    dcmwrite(file, FileDataset(file, header, file_meta=meta, preamble=b"\0" * 128), enforce_file_format=False)
    return file.getvalue()


def _make_routing(decision: RoutingDecision) -> Routing:
    return Routing(
        decision.destinations,
        tuple(
            RouteCheck(
                result.route,
                result.is_match,
                tuple(
                    ConditionCheck(each.condition.key, each.values, each.holds) for each in result.conditions
                ),
            )
            for result in decision.results
        ),
        decision.exclusions,
        tuple(name for name in decision.destinations if name in decision.held),
    )
