cdef class Watched:
    cdef int ready(self, unsigned int events) except -1


cdef class Poller:
    cdef int epoll
    cdef int timer
    cdef double armed           # what the timer is set to
    cdef bint interrupted
    cdef bint made              # there is something to be taken down
    cdef list watched           # by descriptor
    cdef object who(self, int fd)
    cdef int arm(self, double until) except -1
    cdef int control(self, int operation, int fd, unsigned int events) except -1
