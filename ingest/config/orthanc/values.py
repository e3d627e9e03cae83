"""The values of an Orthanc configuration, with Orthanc's defaults and types."""

from collections.abc import Mapping
from typing import Any, Final

from ingest.config.orthanc.keys import HONOURED_KEYS
from ingest.config.source import ConfigSource

TLS_NAME: Final = "orthanc"
"""Name of the `[tls.NAME]` that Orthanc's DicomTls keys become. Orthanc has one set for both directions."""

NO_DEADLINE_SECONDS: Final = 1e9
"""Orthanc's 0 means no timeout."""

MAX_INTEGER: Final = 2**32 - 1
"""Orthanc reads numbers into 32 bits, and refuses larger ones."""

TYPE_NAMES: Final = {bool: "true or false", int: f"a whole number, 0 to {MAX_INTEGER}", str: "a string"}


class OrthancValues:
    """The values of an Orthanc configuration.

    A value of the wrong type is added to the faults of `source`, and its default is returned.
    """

    def __init__(self, values: Mapping[str, Any], source: ConfigSource) -> None:
        self.values = values
        self._source = source

    def get_value(self, key: str) -> Any:
        """Return the value of an honoured key, in the type of its default (a string without a default)."""
        default = HONOURED_KEYS[key].default
        value = self.values.get(key, default)
        if isinstance(default, tuple):
            texts = [value] if isinstance(value, str) else value
            if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
                return list(texts)
            self._source.add_fault(key, "is not a list of strings", 'write it as ["...", "..."]')
            return list(default)
        wanted = str if default is None else type(default)
        if value is not default and (
            type(value) is not wanted or (isinstance(value, int) and not 0 <= value <= MAX_INTEGER)
        ):
            name = TYPE_NAMES[wanted]
            self._source.add_fault(key, f"is not {name}", f"write {name}, as Orthanc requires")
            return default
        return value
