"""Limit on failed logins, for each user and each address, that can lock nobody out.

- Failures of one user from one address delay the next attempt of that pair: 1 s, 2 s, and so on up to
  `PAIR_MAX_SECONDS`.
- Failures of one address, whatever the users, delay its next attempts, but not those of a pair that has
  logged in before: people behind one proxy share an address.
- Failures of one user, whatever the addresses, delay attempts from new addresses up to `USER_MAX_SECONDS`.

An attempt that comes too early is refused without a look at the password, and does not count.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FREE_PAIR: Final = 3
FREE_ADDRESS: Final = 20
FREE_USER: Final = 30
"""Failures without a delay."""

PAIR_MAX_SECONDS: Final = 60.0
ADDRESS_MAX_SECONDS: Final = 60.0
USER_MAX_SECONDS: Final = 10.0

FORGET_SECONDS: Final = 900.0
"""After this time without a failure, failures are forgotten."""

MAX_ENTRIES: Final = 10_000
"""Entries that are kept. A flood of addresses forgets the oldest ones."""


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last: float = 0.0


class LoginLimit:
    """The failed logins of the last minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[tuple[str, ...], _Failures] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def wait_seconds(self, user: str, address: str) -> float:
        """Return how long this pair has to wait before its next attempt; 0 if it may try now."""
        now, pair = self._clock(), (user, address)
        with self._lock:
            waits = [self._wait(("pair", *pair), FREE_PAIR, PAIR_MAX_SECONDS, now)]
            if pair not in self._known:
                waits.append(self._wait(("address", address), FREE_ADDRESS, ADDRESS_MAX_SECONDS, now))
                waits.append(self._wait(("user", user), FREE_USER, USER_MAX_SECONDS, now))
        return max(waits)

    def note_failure(self, user: str, address: str) -> None:
        """Count a failed login."""
        now = self._clock()
        with self._lock:
            for key in (("pair", user, address), ("address", address), ("user", user)):
                entry = self._failures.setdefault(key, _Failures())
                if now - entry.last > FORGET_SECONDS:
                    entry.count = 0
                entry.count += 1
                entry.last = now
                self._failures.move_to_end(key)
            while len(self._failures) > MAX_ENTRIES:
                self._failures.popitem(last=False)

    def note_success(self, user: str, address: str) -> None:
        """Forget the failures of this pair, and know it from now on."""
        with self._lock:
            self._failures.pop(("pair", user, address), None)
            self._known[user, address] = None
            self._known.move_to_end((user, address))
            while len(self._known) > MAX_ENTRIES:
                self._known.popitem(last=False)

    def _wait(self, key: tuple[str, ...], free: int, longest: float, now: float) -> float:
        entry = self._failures.get(key)
        if entry is None or entry.count < free or now - entry.last > FORGET_SECONDS:
            return 0.0
        delay = min(longest, 2.0 ** min(entry.count - free, 16))
        return max(0.0, entry.last + delay - now)
