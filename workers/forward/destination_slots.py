"""Destination slots: one Redis key for each association that a destination accepts. A drain needs one.

Slots are hints that expire by themselves. If they are lost, a remote may see one association too many for a
while. The leases in the ledger, not the slots, keep two workers from sending one delivery.
"""

from collections.abc import Sequence
from typing import Final, cast

import redis

from ingest.config.model import Destination
from ingest.queue.wakeups import JOB_WAITS, drain_key, hold_key
from ingest.workers.forward.breaker import PROBE_MARGIN_MS

SLOT_MS: Final = 8_000
"""Time after which the slot of a killed worker is free. Shorter than its leases last."""

QUIET_MS: Final = 3_000
"""Time without wake-ups for a destination whose slots are all taken: their owners find new deliveries."""

NO_EXPIRY: Final = -1
"""Answer of PTTL for a key that never expires."""

_TAKEN_MARK: Final = b"taken"
"""Value of the drain key while a wake-up would be useless."""

# Only the owner of a slot may extend or delete it. Another worker may own it by now.
_RENEW: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end
return 0
"""
_RELEASE: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


def slot_key(destination: str, number: int) -> str:
    """Return the Redis key of a slot."""
    return f"ingest:place:{destination}:{number}"


def longest_hold_ms(destination: Destination) -> int:
    """Return the longest pause that any worker gives a destination, in milliseconds.

    A key in Redis that lasts longer is not ours, or the clock of Redis was set back.
    """
    probe_ms = 2 * destination.connect_seconds * 1000 + PROBE_MARGIN_MS
    return round(max(destination.retry_max_seconds * 1000, probe_ms, QUIET_MS))


class DestinationSlot:
    """The slot of one drain at a destination. Each method raises `redis.RedisError` while Redis is away."""

    def __init__(self, client: redis.Redis, destination: Destination, slots: int, owner: str) -> None:
        """Prepare without any I/O.

        Args:
            client: Connection to Redis.
            destination: Configuration of the destination.
            slots: Number of slots.
            owner: Unique name of this drain.
        """
        self._client = client
        self._destination = destination.name
        self._longest_hold_ms = longest_hold_ms(destination)
        self._keys = [slot_key(destination.name, number) for number in range(slots)]
        self._owner = owner
        self._held_key: str | None = None

    def acquire(self) -> bool:
        """Consume the wake-up and take a free slot. False if none is free, or the destination is on hold.

        The wake-up is consumed first. A delivery that becomes due from now on causes another wake-up.
        """
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.delete(drain_key(self._destination))
            pipeline.pttl(hold_key(self._destination))
            hold_ms = cast("int", pipeline.execute()[1])
        if 0 < hold_ms <= self._longest_hold_ms:
            self._suppress_wakeups(hold_ms)
            return False
        # INVARIANT 12: Redis is input. A hold that is longer than any of ours must not stop deliveries.
        if hold_ms == NO_EXPIRY or hold_ms > 0:
            self._client.unlink(hold_key(self._destination))
        if self._take_free_slot():
            return True
        self._suppress_wakeups(QUIET_MS)
        return False

    def renew(self) -> bool:
        """Keep the slot. False if it was lost, because Redis was emptied, and all slots are taken."""
        if self._held_key is None:
            return False
        is_kept = self._client.eval(_RENEW, 1, self._held_key, self._owner, SLOT_MS)
        if not is_kept and not self._take_free_slot():
            self._held_key = None
            return False
        if self._client.exists(*self._keys) == len(self._keys):
            self._client.set(drain_key(self._destination), _TAKEN_MARK, px=QUIET_MS)
        return True

    def release(self) -> None:
        """Free the slot and allow wake-ups again. Look for due deliveries after this, not before."""
        if self._held_key is not None:
            self._client.eval(_RELEASE, 1, self._held_key, self._owner)
            self._held_key = None
        self._client.delete(drain_key(self._destination))

    def release_with_hold(self, hold_ms: int) -> None:
        """Free the slot, and keep all workers from the destination for a bounded time."""
        hold_ms = max(1, min(hold_ms, self._longest_hold_ms))
        self._client.set(hold_key(self._destination), self._owner, px=hold_ms)
        self.release()
        self._suppress_wakeups(hold_ms)

    def has_wakeup_for(self, destinations: Sequence[str]) -> bool:
        """Return whether a wake-up for one of these destinations waits for a worker."""
        if not destinations:
            return False
        values = cast("list[bytes | None]", self._client.mget([drain_key(name) for name in destinations]))
        return JOB_WAITS in values

    def _take_free_slot(self) -> bool:
        for key in self._keys:
            is_taken = self._client.set(key, self._owner, nx=True, px=SLOT_MS)
            if not is_taken and self._outlasts_any_slot(key):
                # INVARIANT 12: no process of ours made this key. Two workers may replace it at once. The
                # remote then sees one association too many for a while, as after a Redis that was emptied.
                self._client.unlink(key)
                is_taken = self._client.set(key, self._owner, nx=True, px=SLOT_MS)
            if is_taken:
                self._held_key = key
                return True
        return False

    def _outlasts_any_slot(self, key: str) -> bool:
        left_ms = self._client.pttl(key)
        return left_ms == NO_EXPIRY or left_ms > SLOT_MS

    def _suppress_wakeups(self, milliseconds: int) -> None:
        self._client.set(drain_key(self._destination), _TAKEN_MARK, nx=True, px=milliseconds)
