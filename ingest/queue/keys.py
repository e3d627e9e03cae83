"""The names of our keys in Redis.

Our keys start with `ingest:` and the keys of RQ start with `rq:`. A site may therefore share its Redis with
other programs. Two nodes must not share one database of it.

| key | type | contents |
|---|---|---|
| `ingest:spools` | set | ids of all spools that ever published a reference |
| `ingest:stream:SPOOL` | stream | references to the entries of one spool |
| `ingest:data:SPOOL:NAME` | list | chunks of one Part 10 file (carrier `redis`) |
| `ingest:persisted:SPOOL` | list | names of entries that the spool may release (carrier `redis`) |
| `ingest:witness:SPOOL:ID` | string | proof that Redis was not emptied (`ingest.queue.epoch`) |

`ingest.queue.wakeups` lists the keys that belong to wake-ups.
"""

from typing import Final

GROUP: Final = "persist"
"""The consumer group of the persist workers, on every stream."""

SPOOLS_KEY: Final = "ingest:spools"
"""The set of the ids of all spools that ever published a reference."""

DATA_CHUNK_BYTES: Final = 1 << 20
"""Size of one list element when the carrier `redis` moves a file."""


def stream_key(spool: str) -> str:
    """Return the key of the stream that carries the references of a spool."""
    return f"ingest:stream:{spool}"


def data_key(spool: str, name: str) -> str:
    """Return the key of the chunks of one Part 10 file, which `Location.name` names (carrier `redis`)."""
    return f"ingest:data:{spool}:{name}"


def epoch_key(spool: str, listener: str) -> str:
    """Return the key that disappears when Redis is emptied; see `ingest.queue.epoch`."""
    return f"ingest:witness:{spool}:{listener}"


def persisted_key(spool: str) -> str:
    """Return the key of the list of entries that store and ledger have (carrier `redis`)."""
    return f"ingest:persisted:{spool}"
