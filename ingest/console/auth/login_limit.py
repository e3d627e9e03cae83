"""Limit on failed logins, for each user and each address, that can lock nobody out.

- Failures of one user from one address delay the next attempt of that pair: 1 s, 2 s, and so on up to
  `PAIR_MAX_SECONDS`.
- Failures of one address, whatever the users, delay its next attempts, but not those of a pair that has
  logged in before: people behind one proxy share an address.
- Failures of one user, whatever the addresses, delay attempts from new addresses up to `USER_MAX_SECONDS`.

An attempt that comes too early is refused without a look at the password, and does not count. Attempts under
way count as failures until they end: otherwise many at the same time would all pass.
"""

import threading
import time
from collections import Counter, OrderedDict
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

BUSY_SECONDS: Final = 1.0
"""Wait of an attempt that only attempts under way keep out."""

_Key = tuple[str, ...]


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last: float = 0.0


class LoginLimit:
    """The failed logins of the last minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[_Key, _Failures] = OrderedDict()
        self._pending: Counter[_Key] = Counter()
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def begin(self, user: str, address: str) -> float:
        """Begin an attempt unless this pair has to wait. Call `end` after an attempt that has begun.

        Returns:
            Seconds to wait; 0 if the attempt has begun.
        """
        with self._lock:
            wait = self._find_wait(user, address)
            if not wait:
                self._pending.update(_list_keys(user, address))
        return wait

    def end(self, user: str, address: str) -> None:
        """End an attempt, after its failure or success was noted."""
        with self._lock:
            for key in _list_keys(user, address):
                self._pending[key] -= 1
                if self._pending[key] <= 0:
                    del self._pending[key]

    def wait_seconds(self, user: str, address: str) -> float:
        """Return how long this pair has to wait before its next attempt; 0 if it may try now."""
        with self._lock:
            return self._find_wait(user, address)

    def note_failure(self, user: str, address: str) -> None:
        """Count a failed login."""
        now = self._clock()
        with self._lock:
            for key in _list_keys(user, address):
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

    def _find_wait(self, user: str, address: str) -> float:
        now = self._clock()
        pair_key, address_key, user_key = _list_keys(user, address)
        waits = [self._wait(pair_key, FREE_PAIR, PAIR_MAX_SECONDS, now)]
        if (user, address) not in self._known:
            waits.append(self._wait(address_key, FREE_ADDRESS, ADDRESS_MAX_SECONDS, now))
            waits.append(self._wait(user_key, FREE_USER, USER_MAX_SECONDS, now))
        return max(waits)

    def _wait(self, key: _Key, free: int, longest: float, now: float) -> float:
        entry = self._failures.get(key)
        if entry is None or now - entry.last > FORGET_SECONDS:
            entry = _Failures()
        wait = 0.0
        if entry.count >= free:
            delay = min(longest, 2.0 ** min(entry.count - free, 16))
            wait = max(0.0, entry.last + delay - now)
        if not wait and self._pending[key] and entry.count + self._pending[key] >= free:
            return BUSY_SECONDS
        return wait


def _list_keys(user: str, address: str) -> tuple[_Key, _Key, _Key]:
    return ("pair", user, address), ("address", address), ("user", user)
