from libc.stdint cimport uint16_t, uint64_t

from ingest.ext.cstore_codec cimport StoreContext
from ingest.ext.channel cimport Channel, Taker
from ingest.ext.group_commit cimport Committer, Entry
from ingest.ext.pdu cimport PDUParser


cdef class Operation(Entry):
    cdef StoreCycle cycle
    cdef StoreContext context
    cdef uint16_t _message_id
    cdef uint64_t size
    cdef bytes uid
    cdef bint sound                 # the data set says the UIDs of its command
    cdef bint examined


cdef class Intake:
    cdef readonly Committer committer
    cdef readonly list promised
    cdef public object sleeper
    cdef public bint full
    cdef uint64_t[::1] counters
    cdef int instances
    cdef int volume
    cdef bint durable
    cdef bytes segments
    cdef size_t small
    cdef bytes ready                # the folder that entries end in, below the spool's
    cdef list speaking              # cycles with responses to send

    cdef int promise(self, object where) except -1


cdef class StoreCycle(Taker):
    cdef public bint receiving
    cdef public bint answering
    cdef public bint watched
    cdef bint ended
    cdef public uint64_t stored
    cdef Intake intake
    cdef Channel channel
    cdef PDUParser parser
    cdef object owner
    cdef list contexts              # 128 places, by context ID
    cdef Operation current
    cdef uint16_t *ids
    cdef size_t count
    cdef size_t capacity
    cdef size_t limit
    cdef bint speaks

    cdef bint begin(self, int context_id, bytes command) except -1
    cdef bint end_data_set(self, object event) except -1
    cdef int examine(self) except -1
    cdef Py_ssize_t place(self, uint16_t message_id) noexcept
    cdef int enter(self, uint16_t message_id) except -1
    cdef int leave(self, uint16_t message_id) except -1
    cdef int settle(self, Operation operation, int error) except -1
