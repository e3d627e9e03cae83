"""Reads the parts of `ingest.status.gathered_metrics` within a deadline, even if a disk or service hangs.

Every part is read by a separate thread. A part that does not come within the deadline is left out and
counted. A thread that hangs in a dead mount is not started a second time.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from ingest import threads
from ingest.config.model import Config
from ingest.status.gathered_metrics import GatheredSample, Part

DEADLINE_SECONDS: Final = 4.0
"""Time for all parts of one scrape. Prometheus itself waits 10 s by default."""

COST_FACTOR: Final = 10
"""The samples of a part are used for this many times the duration of its reading, if that is longer."""


class PartReader:
    """Reads one part in a thread, and keeps its samples for a while."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.seconds = 0.0
        self._thread: threading.Thread | None = None
        self._samples: Sequence[GatheredSample] | None = None
        self._fresh_until = 0.0

    def begin(self, config: Config) -> None:
        """Begin to read, unless the samples are fresh or an earlier reading has not ended."""
        is_reading = self._thread is not None and self._thread.is_alive()
        if is_reading or time.monotonic() < self._fresh_until:
            return
        self._samples = None
        self._thread = threads.start_task(f"scrape-{self.part.name}", partial(self._read, config))

    def wait(self, deadline: float) -> Sequence[GatheredSample] | None:
        """Return the samples; None if the part cannot be read, or not until a monotonic time."""
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                return None
        return self._samples

    def _read(self, config: Config) -> None:
        began = time.monotonic()
        # Whatever happens here, the part is left out. `ingest status` and the log say why.
        with contextlib.suppress(Exception):
            self._samples = list(self.part.read(config))
        self.seconds = time.monotonic() - began
        if self._samples is not None:
            self._fresh_until = time.monotonic() + max(self.part.fresh_seconds, COST_FACTOR * self.seconds)


class PartReaders:
    """Reads several parts at once. One thread at a time may use it.

    Attributes:
        errors: How often each part was left out, by name.
    """

    def __init__(
        self, config: Config, parts: Iterable[Part], deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        """Prepare without reading anything."""
        self.errors: Counter[str] = Counter()
        self._config = config
        self._readers = [PartReader(part) for part in parts]
        self._deadline_seconds = deadline_seconds

    @property
    def seconds(self) -> dict[str, float]:
        """The duration of the last reading of each part, by name."""
        return {reader.part.name: reader.seconds for reader in self._readers}

    def read_parts(self) -> list[GatheredSample]:
        """Return the samples of all parts that can be read within the deadline."""
        deadline = time.monotonic() + self._deadline_seconds
        for reader in self._readers:
            reader.begin(self._config)
        found: list[GatheredSample] = []
        for reader in self._readers:
            samples = reader.wait(deadline)
            if samples is None:
                self.errors[reader.part.name] += 1
            found += samples or ()
        return found
