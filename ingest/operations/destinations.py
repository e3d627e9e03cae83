"""Names of destinations that a person gives to a command."""

import difflib
from collections.abc import Iterable

from ingest.config.model import Config
from ingest.errors import UnknownDestinationError


def require_destinations(config: Config, names: Iterable[str]) -> None:
    """Make sure that the configuration has destinations or groups of these names.

    Raises:
        UnknownDestinationError: The configuration has no destination or group of a name.
    """
    known = config.target_names
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(name, known, 1, 0.5)
            question = f'did you mean "{similar[0]}"? ' if similar else ""
            raise UnknownDestinationError(
                f'there is no destination "{name}"; {question}'
                f"the configuration has {', '.join(known) or 'none'}"
            )
