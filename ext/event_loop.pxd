cdef class EventSource:
    cdef int ready(self, unsigned int events) except -1


cdef class EventLoop:
    cdef int epoll
    cdef int timer
    cdef double armed           # time that the timer is set to
    cdef bint interrupted
    cdef bint made              # __cinit__ ran: descriptors have to be closed
    cdef list watched           # event sources by descriptor
    cdef object source_of(self, int fd)
    cdef int set_timer(self, double until) except -1
    cdef int change_interest(self, int operation, int fd, unsigned int events) except -1
