"""The associations of all listeners in one array of shared memory: who holds them, and for which caller.

One entry is one 64-bit word, zero while it is free. Any process may take a free entry and none may wait for
another, which could be stopped or dead: an entry is taken with one compare-and-swap, so that no moment exists
in which a process that dies leaves it half taken. It says which row of the scoreboard took it. When the
process of a row has ended, the supervisor frees the row's entries.

    word 0        how many entries were ever in use at a time; nothing lies beyond
    word 1, …     the entries
                  bits 63-52    number of the scoreboard's row, plus one
                  bits 51-0     digest of the caller

The first free entry is taken, and word 0 raised before it: who counts need not look through the whole table,
and misses no entry.
"""

from libc.stdint cimport uint64_t

__all__ = ["CALLER_BITS", "ROWS_MAX", "claim", "count", "free_row_entries"]

cdef extern from *:
    """
    #include <stdint.h>
    static int take_if_free(uint64_t *word, uint64_t value) {
        uint64_t unused = 0;
        return __atomic_compare_exchange_n(word, &unused, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static uint64_t look_at(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
    static void free_if_held(uint64_t *word, uint64_t value) {
        __atomic_compare_exchange_n(word, &value, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static void raise_to(uint64_t *word, uint64_t least) {
        uint64_t now = __atomic_load_n(word, __ATOMIC_SEQ_CST);
        while (now < least
               && !__atomic_compare_exchange_n(word, &now, least, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) { }
    }
    """
    bint take_if_free(uint64_t *word, uint64_t value) noexcept nogil
    uint64_t look_at(const uint64_t *word) noexcept nogil
    void free_if_held(uint64_t *word, uint64_t value) noexcept nogil
    void raise_to(uint64_t *word, uint64_t least) noexcept nogil

CALLER_BITS = 52
ROWS_MAX = 4095

cdef uint64_t CALLER_MASK = (<uint64_t> 1 << 52) - 1


cdef size_t used(const uint64_t[::1] table) noexcept:
    """Entries that were ever in use. The word lies in shared memory, so it is not trusted with bounds."""
    cdef size_t size = <size_t> table.shape[0]
    return min(<size_t> look_at(&table[0]), size - 1) if size else 0


def claim(uint64_t[::1] table not None, uint64_t row, uint64_t caller):
    """Take a free entry for an association of `caller` on `row`.

    Args:
        table: Word 0 and the entries of all listeners.
        row: Number of the claimant's row of the scoreboard, below ROWS_MAX.
        caller: Digest of CALLER_BITS bits.

    Returns:
        The index of the entry in `table`, or None while all are taken.

    Raises:
        ValueError: The row or the digest does not fit.
    """
    cdef uint64_t value
    cdef size_t at
    if row >= 4095 or caller > CALLER_MASK:
        raise ValueError(f"row {row} or caller {caller:X}H does not fit into an entry")
    value = ((row + 1) << 52) | caller
    for at in range(1, <size_t> table.shape[0]):
        if look_at(&table[at]) == 0:
            raise_to(&table[0], at)
            if take_if_free(&table[at], value):
                return at
    return None


def count(const uint64_t[::1] table not None, uint64_t caller):
    """How many entries are taken: (in all, for `caller`)."""
    cdef size_t at, total = 0, own = 0
    cdef uint64_t word
    for at in range(1, used(table) + 1):
        word = look_at(&table[at])
        if word:
            total += 1
            own += (word & CALLER_MASK) == caller
    return total, own


def free_row_entries(uint64_t[::1] table not None, uint64_t row):
    """Free what a row holds, whose process has ended."""
    cdef size_t at
    cdef uint64_t word
    for at in range(1, used(table) + 1):
        word = look_at(&table[at])
        if word >> 52 == row + 1:
            free_if_held(&table[at], word)
