"""Which destinations an instance goes to (`[[routes]]`): a decision, without I/O."""

from collections.abc import Sequence

from ingest.config.model import Route
from ingest.errors import ConfigError


class Router:
    """The routes of one configuration, read once."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Read them.

        Raises:
            ConfigError: A route has conditions; what is not understood must not be forwarded.
        """
        faults = [
            f"routes.{number}.when: conditions are not known to this version; leave `when` empty"
            for number, route in enumerate(routes)
            if route.when
        ]
        if faults:
            raise ConfigError(faults)
        # Each once, in the order of the file.
        self._destinations = tuple(dict.fromkeys(name for route in routes for name in route.to))

    def destinations(self) -> tuple[str, ...]:
        """Names of the destinations of an instance, each once."""
        return self._destinations
