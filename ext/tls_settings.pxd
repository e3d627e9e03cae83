cdef void *context_of(object context) except? NULL
