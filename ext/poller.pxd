cdef class Watched:
    cdef int ready(self, unsigned int events) except -1


cdef class Poller:
    cdef int epoll
    cdef bint interrupted
    cdef list watched           # by descriptor
    cdef int control(self, int operation, int fd, unsigned int events) except -1
