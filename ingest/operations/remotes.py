"""The remote of one destination, for commands that call it once."""

from dataclasses import dataclass

from ingest.config.model import Config, Destination
from ingest.errors import UnknownDestinationError
from ingest.operations.destinations import require_destinations
from ingest.requestor.remotes import build_remotes
from ingest.requestor.store_scu import Remote, Timeouts


@dataclass(frozen=True, slots=True)
class FoundRemote:
    """A destination as a remote.

    Attributes:
        index: Index of the destination in the configuration.
        destination: Its settings.
        remote: Its address, AE titles and TLS context.
        timeouts: Its deadlines.
    """

    index: int
    destination: Destination
    remote: Remote
    timeouts: Timeouts


def find_remote(config: Config, name: str) -> FoundRemote:
    """Return the remote of the destination with this name.

    Raises:
        ConfigError: A TLS file of this destination cannot be used. Others do not matter.
        UnknownDestinationError: The configuration has no such destination. The message lists the known ones.
    """
    members = next((each.members for each in config.groups if each.name == name), ())
    if members:
        raise UnknownDestinationError(f'"{name}" is a group; name one of its members: {", ".join(members)}')
    require_destinations(config, [name])
    index, destination = next(
        (index, each) for index, each in enumerate(config.destinations) if each.name == name
    )
    # The files of other destinations are none of this command's business.
    remote = build_remotes(config.model_copy(update={"destinations": (destination,)}))[name]
    timeouts = Timeouts(destination.connect_seconds, destination.response_seconds)
    return FoundRemote(index, destination, remote, timeouts)
