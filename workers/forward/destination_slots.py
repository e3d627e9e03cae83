"""Who may drain a destination now: places in Redis, as many as the destination takes associations.

They are hints that end by themselves. Were they lost, a remote would see one association too many for a
while; that no delivery is sent by two is for the leases in the ledger.
"""

from typing import Final, cast

import redis

from ingest.config.model import Destination
from ingest.queue.wakeups import drain_key, hold_key
from ingest.workers.forward.breaker import MARGIN_MILLISECONDS

PLACE_MILLISECONDS: Final = 8_000
"""How long the place of a killed worker stays taken: less than its leases do."""

QUIET_MILLISECONDS: Final = 3_000
"""How long nobody wakes a destination whose places are all taken; who has one sees by itself what comes."""

_RENEW: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end
return 0
"""
_GIVE_BACK: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


def place_key(destination: str, number: int) -> str:
    """The key of one of the places of a destination."""
    return f"ingest:place:{destination}:{number}"


NO_END: Final = -1
"""What PTTL says of a key that stays for ever."""


def longest_hold_ms(destination: Destination) -> int:
    """The longest time that any worker leaves a destination alone, in milliseconds.

    A mark in Redis that would last longer is none of ours, or the clock of Redis went back since.
    """
    probe = 2 * destination.connect_seconds * 1000 + MARGIN_MILLISECONDS
    return round(max(destination.retry_max_seconds * 1000, probe, QUIET_MILLISECONDS))


class Turn:
    """One worker's try at one destination. Every method raises `redis.RedisError` while Redis is away."""

    def __init__(self, client: redis.Redis, destination: Destination, places: int, owner: str) -> None:
        """Describe it.

        Args:
            client: Of Redis.
            destination: What the configuration says of it.
            places: How many may drain it at once.
            owner: Unique to this turn.
        """
        self._client = client
        self._destination = destination.name
        self._longest_hold_ms = longest_hold_ms(destination)
        self._keys = [place_key(destination.name, number) for number in range(places)]
        self._owner = owner
        self._mine: str | None = None

    def take(self) -> bool:
        """Answer the wake-up, and take a place; False where none is free, or it is to be left alone.

        The wake-up is answered before anything is looked up, so that what comes from now on wakes again.
        """
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.delete(drain_key(self._destination))
            pipeline.pttl(hold_key(self._destination))
            held = cast("int", pipeline.execute()[1])
        if 0 < held <= self._longest_hold_ms:
            self._quiet(held)
            return False
        if held == NO_END or held > 0:
            self._client.unlink(hold_key(self._destination))
        if self._take_place():
            return True
        self._quiet(QUIET_MILLISECONDS)
        return False

    def renew(self) -> bool:
        """Keep the place; False if it was lost (a Redis was emptied) and somebody else has it."""
        if self._mine is None:
            return False
        kept = self._client.eval(_RENEW, 1, self._mine, self._owner, PLACE_MILLISECONDS)
        if not kept and not self._take_place():
            self._mine = None
            return False
        if self._client.exists(*self._keys) == len(self._keys):
            self._client.set(drain_key(self._destination), b"taken", px=QUIET_MILLISECONDS)
        return True

    def give_back(self) -> None:
        """Free the place and let others wake the destination again; look for what is due only after this."""
        if self._mine is not None:
            self._client.eval(_GIVE_BACK, 1, self._mine, self._owner)
            self._mine = None
        self._client.delete(drain_key(self._destination))

    def hold_off(self, milliseconds: int) -> None:
        """Free the place, and have everybody leave the destination alone for a while; bounded."""
        milliseconds = min(milliseconds, self._longest_hold_ms)
        self._client.set(hold_key(self._destination), self._owner, px=max(1, milliseconds))
        self.give_back()
        self._quiet(max(1, milliseconds))

    def others_wait(self, destinations: list[str]) -> bool:
        """Whether a job for one of these destinations waits for a worker."""
        if not destinations:
            return False
        values = cast("list[bytes | None]", self._client.mget([drain_key(name) for name in destinations]))
        return b"1" in values

    def _take_place(self) -> bool:
        for key in self._keys:
            taken = self._client.set(key, self._owner, nx=True, px=PLACE_MILLISECONDS)
            if not taken and self._is_endless(key):
                # Between these two commands another worker may do the same; then the remote sees one
                # association too many for a while, as where Redis was emptied.
                self._client.unlink(key)
                taken = self._client.set(key, self._owner, nx=True, px=PLACE_MILLISECONDS)
            if taken:
                self._mine = key
                return True
        return False

    def _is_endless(self, key: str) -> bool:
        """Whether a place stays taken for longer than any of us takes it."""
        left = self._client.pttl(key)
        return left == NO_END or left > PLACE_MILLISECONDS

    def _quiet(self, milliseconds: int) -> None:
        self._client.set(drain_key(self._destination), b"taken", nx=True, px=milliseconds)
