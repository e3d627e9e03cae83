from libc.stdint cimport int64_t, uint16_t, uint64_t

from ingest.ext.cstore_codec cimport StoreContext
from ingest.ext.channel cimport Channel, FastPath
from ingest.ext.group_commit cimport Committer, Entry
from ingest.ext.pdu cimport PDUParser


cdef class CStoreOperation(Entry):
    cdef CStoreOperations operations
    cdef StoreContext context
    cdef uint16_t _message_id
    cdef uint16_t _priority
    cdef uint64_t size
    cdef int64_t began           # monotonic time of the request; then that of the end of its data set
    cdef bytes uid
    cdef bint is_sound                 # the UIDs in the data set are those of the command
    cdef bint is_checked


cdef class CStoreService:
    cdef readonly Committer committer
    cdef object make_location
    cdef readonly list unpublished
    cdef public object on_unpublished
    cdef public bint full
    cdef uint64_t[::1] counters
    cdef uint64_t[::1] metrics
    cdef uint64_t *measured         # the first word of `metrics`; NULL: nothing is measured
    cdef size_t receive_times       # histograms on `metrics`
    cdef size_t commit_times
    cdef int instances
    cdef int volume
    cdef bint durable
    cdef bytes segments
    cdef size_t small
    cdef bytes ready                # folder of committed entries, below the spool
    cdef list responding              # associations with responses to send

    cdef int note_unpublished(self, object location) except -1


cdef class CStoreOperations(FastPath):
    cdef public bint receiving
    cdef public bint answering
    cdef public bint watched
    cdef bint ended
    cdef public uint64_t stored
    cdef CStoreService service
    cdef Channel channel
    cdef PDUParser parser
    cdef object owner
    cdef list contexts              # 128 elements, by presentation context ID
    cdef CStoreOperation current
    cdef uint16_t *ids
    cdef size_t count
    cdef size_t capacity
    cdef size_t limit
    cdef bint is_responding
    cdef size_t calling_instances       # words on the metrics board of this calling AE title
    cdef size_t calling_bytes

    cdef bint begin(self, int context_id, bytes command) except -1
    cdef bint end_data_set(self, object event) except -1
    cdef void observe_time(self, CStoreOperation operation, size_t times) noexcept
    cdef int check_first_piece(self) except -1
    cdef Py_ssize_t find_outstanding(self, uint16_t message_id) noexcept
    cdef int add_outstanding_id(self, uint16_t message_id) except -1
    cdef int remove_outstanding_id(self, uint16_t message_id) except -1
    cdef int finish_operation(self, CStoreOperation operation, int error) except -1
