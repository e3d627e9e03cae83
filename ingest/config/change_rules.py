"""Rules of `[[destinations]] set`, `remove`, `map` and `transcode`.

The rules do not read the file of `map`, because every command reads the configuration. `ingest check`, and
each start and reload of the node, read it.
"""

from collections.abc import Iterator

from ingest.config.attribute_values import parse_attribute, parse_new_value
from ingest.config.faults import Fault
from ingest.config.model import Destination
from ingest.dicom.transcoding import TARGETS, find_target
from ingest.errors import ConditionError


def check_changes(key: str, destination: Destination) -> Iterator[Fault]:
    """Yield every fault of the changes that a destination asks for."""
    is_set: set[int] = set()
    for name, value in destination.set.items():
        try:
            is_set.add(parse_new_value(name, value).tag)
        except ConditionError as error:
            yield Fault(f"{key}.set.{name}", str(error), error.remedy)
    removed: set[int] = set()
    for index, name in enumerate(destination.remove):
        here = f"{key}.remove[{index}]"
        try:
            tag = parse_attribute(name)[0]
        except ConditionError as error:
            yield Fault(here, str(error), error.remedy)
            continue
        if tag in is_set:
            yield Fault(here, f'"{name}" is in `set` too', "keep one of the two")
        elif tag in removed:
            yield Fault(here, f'names "{name}" twice', "name it once")
        removed.add(tag)
    if destination.map is None and destination.map_unmatched != "send":
        yield Fault(f"{key}.map_unmatched", "is set without a map", "add `map`, or remove the key")


def check_transcoding(key: str, destination: Destination) -> Iterator[Fault]:
    """Yield every fault of the transcoding that a destination asks for."""
    here, preferred = f"{key}.preferred_transfer_syntax", destination.preferred_transfer_syntax
    if preferred and find_target(preferred) is None:
        known = ", ".join(TARGETS.values())
        yield Fault(here, f'"{preferred}" is no transfer syntax to send in', f"write one of {known}")
    elif preferred and destination.transcode == "never":
        yield Fault(here, 'is set, and transcode is "never"', 'set transcode = "if-refused" or "always"')
    elif destination.transcode == "always" and not preferred:
        yield Fault(here, 'is empty, and transcode is "always"', "name the transfer syntax to send in")
