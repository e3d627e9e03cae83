"""Tallies of callers: accepted associations, and refusals with their causes.

`ingest callers` and `ingest refusals` show them. Each listener counts in memory and writes its tallies to one
file each, at its heartbeat and only after a change. A listener that dies leaves its files: the next listener
with its row continues them, and readers add the files of all listeners.

An attacker chooses AE titles and certificates, and may own a large network. The number of entries is
therefore bounded for each network and in total. What exceeds a bound is counted without AE title and
certificate, or without the network as well, so that no count is lost.

INVARIANT 9: patient data stays in the data sets. An entry has an address, an AE title, and subject and
fingerprint of a certificate.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from ingest.acceptor.refusals import CallerRefusal, RefusalKind

REFUSALS: Final = "refusals"
CALLERS: Final = "callers"
"""Folders below the run folder."""

ENTRIES_MAX: Final = 512
"""Entries of one tally. Counts beyond it go to one entry for each cause, which come on top."""

NETWORK_ENTRIES_MAX: Final = 32
"""Entries of one network with AE title or certificate."""

WRITE_MS: Final = 2_000
"""Shortest time between two writes of one tally."""

STALE_MS: Final = 3_600_000
"""An entry that was not counted for so long gives way to a new one if the tally is full."""

FORGOTTEN_MS: Final = 30 * 86_400_000
"""An entry that was not counted for so long is left out."""

TEXT_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class TallyKey:
    """What one entry counts.

    Attributes:
        refusal: Why the caller was refused; None in the tally of accepted associations.
        network: Network of the caller: an IPv4 address, or an IPv6 /64; empty for all that were too many.
        calling_ae: Calling AE title, as far as it was received.
        fingerprint: SHA-256 of its certificate; empty if none was seen.
    """

    refusal: CallerRefusal | None
    network: str
    calling_ae: str = ""
    fingerprint: str = ""


@dataclass(slots=True)
class TallyEntry:
    """One entry; times are Unix milliseconds. The subject is not verified if the certificate was refused."""

    key: TallyKey
    subject: str
    count: int
    first_ms: int
    last_ms: int

    def to_json(self) -> dict[str, Any]:
        """Return the entry for its file."""
        key = self.key
        return {
            "refusal": None if key.refusal is None else asdict(key.refusal),
            "network": key.network,
            "calling_ae": key.calling_ae,
            "fingerprint": key.fingerprint,
            "subject": self.subject,
            "count": self.count,
            "first_ms": self.first_ms,
            "last_ms": self.last_ms,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read an entry of a file.

        Raises:
            ValueError, KeyError, TypeError: It is none.
        """
        refusal = values["refusal"]
        key = TallyKey(
            refusal
            and CallerRefusal(
                RefusalKind(refusal["kind"]), str(refusal["cause"]), int(refusal["verify_code"])
            ),
            *(str(values[name])[:TEXT_MAX] for name in ("network", "calling_ae", "fingerprint")),
        )
        numbers = (int(values[name]) for name in ("count", "first_ms", "last_ms"))
        return cls(key, str(values["subject"])[:TEXT_MAX], *numbers)

    def add(self, other: "TallyEntry") -> None:
        """Add the counts of an entry with the same key."""
        self.count += other.count
        self.first_ms = min(self.first_ms, other.first_ms)
        self.last_ms = max(self.last_ms, other.last_ms)


class CallerTally:
    """One tally of one listener."""

    def __init__(self, run_dir: Path, folder: str, row: int, unix_ms: int) -> None:
        """Go on with the file that an earlier listener of the same row left.

        Args:
            run_dir: Run folder of the node.
            folder: `REFUSALS` or `CALLERS`.
            row: Row of the listener on the scoreboard. No other living listener has it.
            unix_ms: Current time.
        """
        self._path = run_dir / folder / f"{row}.json"
        found = [entry for entry in _read_file(self._path) if entry.last_ms > unix_ms - FORGOTTEN_MS]
        self._entries = {entry.key: entry for entry in found[: 2 * ENTRIES_MAX]}
        self._networks = Counter(key.network for key in self._entries)
        self._is_changed = False
        self._write_at_ms = 0
        self._full_until_ms = 0

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, key: TallyKey, unix_ms: int, subject: str = "") -> None:
        """Count one event."""
        entry = self._entries.get(key)
        if entry is None:
            key = self._bound_key(key, unix_ms)
            entry = self._entries.get(key)
        if entry is None:
            text = "".join(each if each.isprintable() else "?" for each in subject[:TEXT_MAX])
            entry = TallyEntry(key, text if key.fingerprint else "", 0, unix_ms, unix_ms)
            self._entries[key] = entry
            self._networks[key.network] += 1
        entry.count += 1
        entry.last_ms = max(entry.last_ms, unix_ms)
        self._is_changed = True

    def write_if_due(self, unix_ms: int, *, at_once: bool = False) -> None:
        """Write the file after a change. A fault of the disk is ignored: the next call tries again."""
        if not self._is_changed or (unix_ms < self._write_at_ms and not at_once):
            return
        self._write_at_ms = unix_ms + WRITE_MS
        new = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            new.write_text(json.dumps([entry.to_json() for entry in self._entries.values()]))
            new.replace(self._path)
            self._is_changed = False

    def _bound_key(self, key: TallyKey, unix_ms: int) -> TallyKey:
        """Return a coarser key if the tally has no room for this one."""
        if self._networks[key.network] >= NETWORK_ENTRIES_MAX:
            key = replace(key, calling_ae="", fingerprint="")
        if key in self._entries or len(self._entries) < ENTRIES_MAX or self._drop_stale(unix_ms):
            return key
        return TallyKey(key.refusal, "")

    def _drop_stale(self, unix_ms: int) -> bool:
        """Drop the entry that was counted longest ago; False if all were counted lately."""
        # An attacker must not cause a search for each connection.
        if unix_ms < self._full_until_ms:
            return False
        oldest = min(self._entries.values(), key=lambda entry: entry.last_ms)
        if oldest.last_ms > unix_ms - STALE_MS:
            self._full_until_ms = min(oldest.last_ms + STALE_MS, unix_ms + STALE_MS)
            return False
        del self._entries[oldest.key]
        self._networks[oldest.key.network] -= 1
        self._networks += Counter()  # forget networks without an entry
        return True


def read_tallies(run_dir: Path, folder: str, unix_ms: int) -> list[TallyEntry]:
    """Return the entries of all listeners, those with one key added up, the last one first."""
    merged: dict[TallyKey, TallyEntry] = {}
    for path in sorted((run_dir / folder).glob("*.json")):
        for entry in _read_file(path):
            found = merged.setdefault(entry.key, entry)
            if found is not entry:
                found.add(entry)
    recent = (entry for entry in merged.values() if entry.last_ms > unix_ms - FORGOTTEN_MS)
    return sorted(recent, key=lambda entry: -entry.last_ms)


def _read_file(path: Path) -> list[TallyEntry]:
    try:
        rows = json.loads(path.read_bytes())
        return list(_parse_rows(rows))
    except (OSError, ValueError, TypeError):
        return []


def _parse_rows(rows: Iterable[dict[str, Any]]) -> Iterable[TallyEntry]:
    for row in rows:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            yield TallyEntry.from_json(row)
