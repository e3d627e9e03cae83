from libc.stdint cimport uint64_t


cdef class ControlPDU:
    cdef readonly int pdu_type
    cdef readonly bytes data


cdef class Command:
    cdef readonly int context_id
    cdef readonly bytes data


cdef class DataSet:
    cdef readonly int context_id
    cdef readonly uint64_t length
    cdef readonly bytes data
    cdef readonly bint too_large
    cdef int write_errno    # `errno` is a macro of C, so Python sees it through a property
