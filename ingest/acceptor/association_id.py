"""Ids of associations: the last instance of an association names it, and so does the scoreboard.

An id has 63 bits, since it is a number of the ledger: 23 bits that are the same for all associations of one
data folder, and 40 random ones. The monitor of a host recognizes by the first ones which associations its own
scoreboard has to know.
"""

import secrets
import socket
from hashlib import blake2b
from pathlib import Path
from typing import Final

_OWN_BITS: Final = 40
_NODE_BITS: Final = 23


def find_id_range(data_dir: Path) -> tuple[int, int]:
    """Return the smallest and the largest id of the associations of a data folder on this host."""
    digest = blake2b(f"{socket.gethostname()} {data_dir}".encode(), digest_size=8).digest()
    first = (int.from_bytes(digest) >> (64 - _NODE_BITS)) << _OWN_BITS
    # 0 is no id.
    return first + 1, first + (1 << _OWN_BITS) - 1


def make_association_id(id_range: tuple[int, int]) -> int:
    """Return a new id within a range."""
    first, last = id_range
    return first + secrets.randbelow(last - first + 1)
