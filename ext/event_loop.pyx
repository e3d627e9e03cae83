"""Waits for many descriptors with epoll(7) and tells their owners, those in C without a Python call.

The event loops at hand do not fit a receiver: uvloop does not report a connection that was reset, and in each
of them one turn for a small instance costs more than receiving it.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from posix.time cimport CLOCK_MONOTONIC, timespec
from posix.types cimport time_t
from posix.unistd cimport close

from ingest.ext.system cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, epoll_create1, epoll_ctl,
    epoll_event, epoll_wait,
)

import os

__all__ = ["READABLE", "WRITABLE", "Poller", "Watched"]

cdef extern from "sys/timerfd.h" nogil:
    cdef struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int, int)
    int timerfd_settime(int, int, const itimerspec *, itimerspec *)
    enum: TFD_CLOEXEC
    enum: TFD_NONBLOCK
    enum: TFD_TIMER_ABSTIME

cdef enum:
    TURN = 64               # events of one turn

READABLE = EPOLLIN
WRITABLE = EPOLLOUT


cdef class Watched:
    """Who is told that a descriptor is ready."""

    cdef int ready(self, unsigned int events) except -1:
        """These of its events have come, or errors, which always do."""
        return 0


@cython.final
cdef class Caller(Watched):
    """A function of Python."""

    cdef object function

    cdef int ready(self, unsigned int events) except -1:
        self.function()
        return 0


@cython.final
cdef class Poller:
    """Descriptors and who is told of them.

    Raises:
        OSError: The process may open no more files.
    """

    def __cinit__(self):
        self.epoll = self.timer = -1        # before anything fails: 0 would be closed as if it were ours
        self.made = True
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        if self.timer < 0:
            raise OSError(errno, os.strerror(errno))
        self.watched = []
        self.control(EPOLL_CTL_ADD, self.timer, EPOLLIN)

    def __dealloc__(self):
        if not self.made:
            return
        if self.epoll >= 0:
            close(self.epoll)
        if self.timer >= 0:
            close(self.timer)

    def watch(self, int fd, watched not None, unsigned int events):
        """From now on tell `watched` of these events, and of errors.

        Args:
            fd: The descriptor; one that is closed is forgotten by the kernel, and its number may come again.
            watched: A Watched, or a function without arguments.
            events: READABLE and WRITABLE, or'ed; 0 leaves the errors.

        Raises:
            OSError: The descriptor cannot be watched.
        """
        cdef Caller caller
        known = self.who(fd)
        if not isinstance(watched, Watched):
            caller = Caller.__new__(Caller)
            caller.function = watched
            watched = caller
        if known is watched:
            self.control(EPOLL_CTL_MOD, fd, events)
            return
        if fd >= 0 and fd >= len(self.watched):
            # First of all: without memory the kernel must not know a descriptor that has no place here.
            self.watched.extend([None] * (fd + 1 - len(self.watched)))
        self.control(EPOLL_CTL_ADD, fd, events)
        self.watched[fd] = watched

    def forget(self, int fd, watched):
        """Let go of `watched`, whose descriptor is closed; another may have its number by now."""
        if watched is not None and self.who(fd) is watched:
            self.watched[fd] = None

    def unwatch(self, int fd):
        """Tell nobody of this descriptor any more."""
        if self.who(fd) is not None:
            self.control(EPOLL_CTL_DEL, fd, 0)
            self.watched[fd] = None

    def run(self, double until):
        """Wait and tell who is ready, until a time or until `interrupt`; handlers of signals run in between.

        Args:
            until: On the monotonic clock, seconds.

        Returns:
            What those who were told raised; none keeps the others from being told.
        """
        cdef epoll_event events[TURN]
        cdef int count, at
        cdef bint late = False
        cdef list raised = []
        cdef object watched
        self.arm(until)
        while True:
            PyErr_CheckSignals()
            with nogil:
                count = epoll_wait(self.epoll, events, TURN, 0 if self.interrupted else -1)
            if count < 0 and errno != EINTR:
                raise OSError(errno, os.strerror(errno))
            for at in range(count):
                if events[at].data.fd == self.timer:
                    late = True
                    continue
                watched = self.who(events[at].data.fd)
                if watched is None:
                    continue
                try:
                    (<Watched> watched).ready(events[at].events)
                except Exception as error:
                    raised.append(error)
            if late or self.interrupted or raised:
                self.interrupted = False
                return raised

    def interrupt(self):
        """Have `run` return after this turn; for its own thread."""
        self.interrupted = True

    def close(self):
        """Forget all."""
        self.watched = []

    cdef object who(self, int fd):
        """Whom to tell of a descriptor, or None; any number may be asked for."""
        return self.watched[fd] if 0 <= fd < len(self.watched) else None

    cdef int arm(self, double until) except -1:
        """Set the timer. It costs once what a time limit of epoll_wait would cost at every wait."""
        cdef itimerspec when
        if until == self.armed:
            return 0
        when.it_interval.tv_sec = when.it_interval.tv_nsec = 0
        when.it_value.tv_sec = <time_t> until
        when.it_value.tv_nsec = <long> ((until - <double> when.it_value.tv_sec) * 1e9)
        if when.it_value.tv_sec == 0 and when.it_value.tv_nsec == 0:
            when.it_value.tv_nsec = 1       # 0 would disarm it
        if timerfd_settime(self.timer, TFD_TIMER_ABSTIME, &when, NULL) != 0:
            raise OSError(errno, os.strerror(errno))
        self.armed = until
        return 0

    cdef int control(self, int operation, int fd, unsigned int events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.fd = fd
        if epoll_ctl(self.epoll, operation, fd, &event) != 0:
            raise OSError(errno, os.strerror(errno))
        return 0
