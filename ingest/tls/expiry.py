"""Until when certificates are good: whose they are, and what is to be said about it when."""

import contextlib
import json
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from ingest.config.model import Config
from ingest.errors import IngestError
from ingest.tls.identity import Identity, matches
from ingest.tls.keys.pairs import inspect
from ingest.tls.observed_certificates import FOLDER, prune

THRESHOLDS: Final = (1, 7, 30)
"""Days before the end at which it is said."""

SOON: Final = timedelta(days=THRESHOLDS[-1])
LOOK_SECONDS: Final = 60.0
GONE: Final = timedelta(days=30)
"""After its end: whose certificate that was does not call any more."""
IN_FORCE: Final = "certificates.json"

Mark = tuple[str, str, int | str]
"""What was said: section, fingerprint, and the threshold; after the end, the day."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder with certificates that a configuration names.

    Attributes:
        section: "tls.NAME".
        key: In that section: "certificate", "pkcs12" or "trusted[0]".
    """

    section: str
    key: str
    path: Path
    password_file: Path | None


@dataclass(frozen=True, slots=True)
class Dated:
    """One certificate, and whose it is.

    Attributes:
        role: "own"; "issuer" of our own, in its chain; "peer": a `[[peers]]` is bound to it;
            "destination": one has shown it; "trusted" by other reasons.
        whose: AE titles of the peers that are bound to it; of what else is trusted, the destinations that it
            may stand for.
    """

    place: Place
    role: Literal["own", "issuer", "peer", "destination", "trusted"]
    whose: tuple[str, ...]
    identity: Identity

    @property
    def needed(self) -> bool:
        """Whether its end stops somebody who was named, and not whoever it may be."""
        return self.role != "trusted"


@dataclass(frozen=True, slots=True)
class Due:
    """Something to say now.

    Attributes:
        days: The threshold that was passed; 0 when the certificate has ended.
        mark: To remember that it was said.
    """

    certificate: Dated
    days: int
    mark: Mark


def places(config: Config) -> Iterator[Place]:
    """Wherever a configuration has certificates: our own, and those that we trust."""
    for name, tls in config.tls.items():
        section, password_file = f"tls.{name}", tls.password_file
        if tls.pkcs12 is not None:
            yield Place(section, "pkcs12", tls.pkcs12, password_file)
        if tls.certificate is not None:
            yield Place(section, "certificate", tls.certificate, None)
        for index, path in enumerate(tls.trusted):
            yield Place(section, f"trusted[{index}]", path, password_file)


def certificates(config: Config, place: Place) -> list[Dated]:
    """What is in one of the places.

    Raises:
        IngestError: It cannot be read, or holds none.
    """
    found = []
    name = place.section.removeprefix("tls.")
    destinations = tuple(each.name for each in config.destinations if each.tls == name)
    for index, identity in enumerate(inspect(place.path, place.password_file)):
        if not place.key.startswith("trusted"):
            found.append(Dated(place, "issuer" if index else "own", (), identity))
            continue
        bound = tuple(
            dict.fromkeys(
                peer.ae_title
                for peer in config.peers
                if peer.certificate and matches(identity, peer.certificate)
            )
        )
        found.append(Dated(place, "peer" if bound else "trusted", bound or destinations, identity))
    return found


def shown(config: Config) -> Iterator[Dated]:
    """Certificates that bound peers and destinations have shown (`ingest.tls.observed_certificates`)."""
    callers = {peer.ae_title for peer in config.peers if peer.certificate or peer.issuer}
    known = {"peer": callers, "destination": {each.name for each in config.destinations}}
    for path in sorted((config.run_dir / FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(path.read_text())
            role, whose, end = told["role"], told["whose"], datetime.fromisoformat(told["not_after"])
            if whose in known[role] and datetime.now(UTC) < end + GONE:
                identity = Identity(told["fingerprint"], told["subject"], "", (), end)
                yield Dated(Place(f"{role}s", whose, path, None), role, (whose,), identity)


def without_those(found: Iterable[Dated], known: Iterable[Dated]) -> Iterator[Dated]:
    """Those of `found` that are not among `known`: a peer may show what stands in `trusted`."""
    there = {each.identity.fingerprint for each in known}
    return (each for each in found if each.identity.fingerprint not in there)


def as_row(each: Dated) -> dict[str, Any]:
    """For JSON."""
    return {
        "section": each.place.section,
        "file": str(each.place.path),
        "role": each.role,
        "whose": list(each.whose),
        "subject": each.identity.subject,
        "sha256": each.identity.fingerprint,
        "not_after": each.identity.not_after.isoformat(),
    }


def in_force(run_dir: Path) -> list[dict[str, Any]]:
    """What the node with this folder has read, as rows; empty where it left no word."""
    try:
        rows: list[dict[str, Any]] = json.loads((run_dir / IN_FORCE).read_text())
    except (OSError, ValueError):
        return []
    return rows


def due_warnings(now: datetime, found: Iterable[Dated], said: Collection[Mark]) -> list[Due]:
    """What is to be said of certificates that end: once at each of 30, 7 and 1 days, then once a day.

    Args:
        now: With a time zone.
        found: In any order; one that is there twice is told of once a section.
        said: The marks of what was said before.
    """
    due: dict[Mark, Due] = {}
    for each in found:
        left = each.identity.not_after - now
        passed = next((days for days in THRESHOLDS if left <= timedelta(days=days)), None)
        if passed is None:
            continue
        ended = left <= timedelta(0)
        moment = now.astimezone(UTC).date().isoformat() if ended else passed
        mark = (each.place.section, each.identity.fingerprint, moment)
        if mark not in said:
            due.setdefault(mark, Due(each, 0 if ended else passed, mark))
    return list(due.values())


class Watch:
    """Tells the log of a running node what is due; of what is in force, so files are read by `take` only."""

    def __init__(self) -> None:
        self._config = Config()
        self._found: list[Dated] = []
        self._said: set[Mark] = set()
        self._next = 0.0

    def take(self, config: Config) -> None:
        """Watch the certificates of this configuration from now on, and leave word of them for `in_force`."""
        self._config, self._found, self._next = config, [], 0.0
        for place in places(config):
            try:
                self._found += certificates(config, place)
            except IngestError as error:  # such as one of a trusted bundle that `cryptography` cannot read
                key = f"{place.section}.{place.key}"
                log.warning("certificate_not_watched", key=key, error=str(error))
        path = config.run_dir / IN_FORCE
        with contextlib.suppress(OSError):  # for whoever asks; no reason for a node to stop
            new = path.with_suffix(".new")
            new.write_text(json.dumps([as_row(each) for each in self._found]))
            new.replace(path)

    def look(self) -> None:
        """Say what is due; does nothing more often than once a minute."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_SECONDS
        prune(self._config.run_dir, datetime.now(UTC) - GONE)
        found = [*self._found, *without_those(shown(self._config), self._found)]
        for due in due_warnings(datetime.now(UTC), found, self._said):
            self._said.add(due.mark)
            _say(due)


def _say(due: Due) -> None:
    each = due.certificate
    told = {
        "key": f"{each.place.section}.{each.place.key}",
        "file": str(each.place.path),
        "role": each.role,
        "whose": list(each.whose),
        "subject": each.identity.subject,
        "not_after": each.identity.not_after.isoformat(),
    }
    theirs = each.place.section in {"peers", "destinations"}
    remedy = "have its holder replace it" if theirs else "replace it, then reload"
    if due.days:
        log.warning("certificate_ends", within_days=due.days, remedy=remedy, **told)
    else:
        log.error("certificate_ended", remedy=remedy, **told)
