"""The plans of all destinations of a configuration."""

from ingest.codecs.available import list_codecs
from ingest.codecs.pool import CodecPool
from ingest.config.attribute_map import read_attribute_map
from ingest.config.attribute_values import parse_attribute, parse_new_value
from ingest.config.model import Config, Destination
from ingest.dicom.transcoding import TranscodeMode, TranscodingRule, find_target
from ingest.errors import ConfigError
from ingest.outgoing.attributes import WantedChanges
from ingest.outgoing.coercion import Coercion
from ingest.outgoing.plan import OutgoingPlan, Rewrite
from ingest.outgoing.transcoding import Transcoding


def build_plans(config: Config) -> dict[str, OutgoingPlan]:
    """Build the plan of each destination that changes data sets, by its name. This reads the files of maps.

    Raises:
        ConfigError: A map cannot be used. The error has the faults of all of them.
    """
    plans: dict[str, OutgoingPlan] = {}
    faults: list[str] = []
    codecs = CodecPool(config.workers.encoders)
    for index, destination in enumerate(config.destinations):
        try:
            rewrites = _list_rewrites(config, destination)
        except ConfigError as error:
            faults += [f"destinations[{index}].map: {fault}" for fault in error.faults]
            continue
        transcoding = plan_transcoding(destination, codecs)
        if rewrites or transcoding is not None:
            plans[destination.name] = OutgoingPlan(rewrites, transcoding)
    if faults:
        raise ConfigError(faults)
    return plans


def _list_rewrites(config: Config, destination: Destination) -> tuple[Rewrite, ...]:
    return (Coercion(plan_changes(config, destination)),) if destination.changes_attributes else ()


def plan_transcoding(destination: Destination, codecs: CodecPool) -> Transcoding | None:
    """Return the transcoding that a destination asks for; None if it asks for none."""
    mode = TranscodeMode(destination.transcode)
    if mode is TranscodeMode.NEVER:
        return None
    preferred = find_target(destination.preferred_transfer_syntax) or ""
    return Transcoding(TranscodingRule(mode, preferred, list_codecs()), codecs)


def plan_changes(config: Config, destination: Destination) -> WantedChanges:
    """Return the changes of attributes that a destination asks for.

    Raises:
        ConfigError: The map cannot be used.
    """
    return WantedChanges(
        tuple(parse_new_value(name, value) for name, value in destination.set.items()),
        frozenset(parse_attribute(name)[0] for name in destination.remove),
        None if destination.map is None else read_attribute_map(destination.map),
        destination.map_unmatched == "dead",
        destination.original_attributes,
        _name_system(config),
    )


def _name_system(config: Config) -> str:
    """Return the name of the node for Modifying System (LO): in ASCII, since any character set has it."""
    name = config.node.name
    is_usable = name.isascii() and name.isprintable() and "\\" not in name and len(name) <= 64
    return name if name and is_usable else config.node.ae_title
