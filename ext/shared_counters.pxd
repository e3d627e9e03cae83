from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #define DURATION_BOUNDS 20
    static const uint64_t duration_bounds[DURATION_BOUNDS] = {
        100000ull, 250000ull, 500000ull,                                        /* 0.1 ms and more */
        1000000ull, 2500000ull, 5000000ull, 10000000ull, 25000000ull, 50000000ull,
        100000000ull, 250000000ull, 500000000ull,
        1000000000ull, 2500000000ull, 5000000000ull, 10000000000ull, 30000000000ull,
        60000000000ull, 600000000000ull, 3600000000000ull                       /* up to an hour */
    };
    static inline void add_to_word(uint64_t *word, uint64_t value) {
        __atomic_fetch_add(word, value, __ATOMIC_RELAXED);
    }
    static inline void observe_duration(uint64_t *cell, uint64_t duration_ns, uint64_t count) {
        int at = 0;
        while (at < DURATION_BOUNDS && duration_ns > duration_bounds[at])
            at++;
        __atomic_fetch_add(&cell[at], count, __ATOMIC_RELAXED);
        __atomic_fetch_add(&cell[DURATION_BOUNDS + 1], duration_ns * count, __ATOMIC_RELAXED);
    }
    """
    enum: DURATION_BOUNDS
    const uint64_t *duration_bounds
    void add_to_word(uint64_t *word, uint64_t value) noexcept nogil
    void observe_duration(uint64_t *cell, uint64_t duration_ns, uint64_t count) noexcept nogil

cdef enum:
    HISTOGRAM_SIZE = 22         # words of a histogram: DURATION_BOUNDS + 2
