"""Counters and histograms in an array of shared memory that many processes add to.

Every addition is one atomic instruction on one 64-bit word. A process that dies at any moment leaves no
counter half written, and its additions stay. The order of two additions is not kept: a reader may see the
second one first.

A histogram of durations is a run of words:

    words 0 to 19   durations up to each of the bounds, longer than the bound before
    word 20         durations longer than the last bound
    word 21         sum of all durations, in nanoseconds
"""

from ingest.ext.shared_counters cimport (
    DURATION_BOUNDS, HISTOGRAM_SIZE, add_to_word, duration_bounds, observe_duration,
)
from libc.stdint cimport uint64_t

__all__ = ["DURATION_BOUNDS_NS", "HISTOGRAM_WORDS", "add", "observe"]

DURATION_BOUNDS_NS = tuple(duration_bounds[at] for at in range(DURATION_BOUNDS))
HISTOGRAM_WORDS = HISTOGRAM_SIZE


def add(uint64_t[::1] words not None, size_t word, uint64_t value):
    """Add to one word. It wraps at 2 to the power of 64.

    Raises:
        IndexError: There is no such word.
    """
    if word >= <size_t> words.shape[0]:
        raise IndexError(f"no word {word}")
    add_to_word(&words[word], value)


def observe(uint64_t[::1] words not None, size_t word, uint64_t duration_ns, uint64_t count=1):
    """Count durations of the same length in the histogram that begins at a word.

    Raises:
        IndexError: The histogram does not lie within the words.
    """
    if word + HISTOGRAM_SIZE > <size_t> words.shape[0]:
        raise IndexError(f"no histogram at word {word}")
    observe_duration(&words[word], duration_ns, count)
