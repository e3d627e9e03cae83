"""Table of the associations of all listeners in one array of shared memory.

An entry is one 64-bit word, zero while it is free. Any process may claim a free entry. No process may wait
for another one, because the other one could be stopped or dead. A claim is therefore one compare-and-swap: a
process that dies at any moment leaves no entry half claimed. An entry names the scoreboard row of its owner.
When the process of a row has ended, the supervisor frees the entries of that row.

    word 0        highest index that was ever in use; all entries above it are free
    word 1, …     the entries
                  bits 63-52    number of the scoreboard row, plus one
                  bits 51-0     digest of the caller

A claim uses the first free entry and raises word 0 before it writes the entry. A count therefore need not
read the whole table, and it misses no entry.
"""

from libc.stdint cimport uint64_t

__all__ = ["CALLER_BITS", "ROWS_MAX", "claim", "count", "free_row_entries"]

cdef extern from *:
    """
    #include <stdint.h>
    static int claim_if_free(uint64_t *word, uint64_t value) {
        uint64_t unused = 0;
        return __atomic_compare_exchange_n(word, &unused, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static uint64_t load_word(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
    static void free_if_unchanged(uint64_t *word, uint64_t value) {
        __atomic_compare_exchange_n(word, &value, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static void raise_to_at_least(uint64_t *word, uint64_t least) {
        uint64_t now = __atomic_load_n(word, __ATOMIC_SEQ_CST);
        while (now < least
               && !__atomic_compare_exchange_n(word, &now, least, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) { }
    }
    """
    bint claim_if_free(uint64_t *word, uint64_t value) noexcept nogil
    uint64_t load_word(const uint64_t *word) noexcept nogil
    void free_if_unchanged(uint64_t *word, uint64_t value) noexcept nogil
    void raise_to_at_least(uint64_t *word, uint64_t least) noexcept nogil

CALLER_BITS = 52
ROWS_MAX = 4095

cdef uint64_t CALLER_MASK = (<uint64_t> 1 << 52) - 1


cdef size_t find_highest_used(const uint64_t[::1] table) noexcept:
    """Return the highest index that was ever in use, limited to the table: shared memory is not trusted."""
    cdef size_t size = <size_t> table.shape[0]
    return min(<size_t> load_word(&table[0]), size - 1) if size else 0


def claim(uint64_t[::1] table not None, uint64_t row, uint64_t caller):
    """Claim a free entry for an association of `caller` on `row`.

    Args:
        table: Word 0 and the entries.
        row: Scoreboard row of this process, below ROWS_MAX.
        caller: Digest of CALLER_BITS bits.

    Returns:
        The index of the entry in `table`, or None if no entry is free.

    Raises:
        ValueError: The row or the digest does not fit.
    """
    cdef uint64_t value
    cdef size_t at
    if row >= 4095 or caller > CALLER_MASK:
        raise ValueError(f"row {row} or caller {caller:X}H does not fit into an entry")
    value = ((row + 1) << 52) | caller
    for at in range(1, <size_t> table.shape[0]):
        if load_word(&table[at]) == 0:
            raise_to_at_least(&table[0], at)
            if claim_if_free(&table[at], value):
                return at
    return None


def count(const uint64_t[::1] table not None, uint64_t caller):
    """Count the claimed entries. Return the total and the number of those for `caller`."""
    cdef size_t at, total = 0, own = 0
    cdef uint64_t word
    for at in range(1, find_highest_used(table) + 1):
        word = load_word(&table[at])
        if word:
            total += 1
            own += (word & CALLER_MASK) == caller
    return total, own


def free_row_entries(uint64_t[::1] table not None, uint64_t row):
    """Free all entries of a row whose process has ended."""
    cdef size_t at
    cdef uint64_t word
    for at in range(1, find_highest_used(table) + 1):
        word = load_word(&table[at])
        if word >> 52 == row + 1:
            free_if_unchanged(&table[at], word)
