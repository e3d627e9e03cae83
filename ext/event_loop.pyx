"""An event loop on epoll(7) that calls the owners of ready descriptors, in C without a Python call.

Existing event loops do not suit a receiver. uvloop does not report a reset connection. In asyncio and uvloop
alike, one turn of the loop costs more than receiving a small instance.
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

__all__ = ["READABLE", "WRITABLE", "EventLoop", "EventSource"]

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
    EVENTS_MAX = 64               # events that one epoll_wait returns at most

READABLE = EPOLLIN
WRITABLE = EPOLLOUT


cdef class EventSource:
    """The owner of a descriptor, called when it is ready."""

    cdef int ready(self, unsigned int events) except -1:
        """Handle these events of the descriptor. Errors are reported even if they were not asked for."""
        return 0


@cython.final
cdef class CallbackSource(EventSource):
    """An event source that calls a Python function."""

    cdef object function

    cdef int ready(self, unsigned int events) except -1:
        self.function()
        return 0


@cython.final
cdef class EventLoop:
    """Descriptors with their event sources.

    Raises:
        OSError: The process may open no more files.
    """

    def __cinit__(self):
        self.epoll = self.timer = -1        # First: otherwise a failure below would close descriptor 0.
        self.made = True
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        if self.timer < 0:
            raise OSError(errno, os.strerror(errno))
        self.watched = []
        self.change_interest(EPOLL_CTL_ADD, self.timer, EPOLLIN)

    def __dealloc__(self):
        if not self.made:
            return
        if self.epoll >= 0:
            close(self.epoll)
        if self.timer >= 0:
            close(self.timer)

    def watch(self, int fd, watched not None, unsigned int events):
        """Call `watched` for these events of a descriptor, and for errors.

        Args:
            fd: The descriptor. The kernel drops a closed descriptor, and its number may be used again.
            watched: An EventSource, or a function without arguments.
            events: READABLE and WRITABLE, combined with |. 0 reports errors only.

        Raises:
            OSError: The descriptor cannot be watched.
        """
        cdef CallbackSource caller
        known = self.source_of(fd)
        if not isinstance(watched, EventSource):
            caller = CallbackSource.__new__(CallbackSource)
            caller.function = watched
            watched = caller
        if known is watched:
            self.change_interest(EPOLL_CTL_MOD, fd, events)
            return
        if fd >= 0 and fd >= len(self.watched):
            # Before epoll_ctl: if memory runs out here, the kernel must not report a descriptor without a
            # source.
            self.watched.extend([None] * (fd + 1 - len(self.watched)))
        self.change_interest(EPOLL_CTL_ADD, fd, events)
        self.watched[fd] = watched

    def forget(self, int fd, watched):
        """Drop a source whose descriptor is closed, unless another source has the number by now."""
        if watched is not None and self.source_of(fd) is watched:
            self.watched[fd] = None

    def unwatch(self, int fd):
        """Stop reporting events of this descriptor."""
        if self.source_of(fd) is not None:
            self.change_interest(EPOLL_CTL_DEL, fd, 0)
            self.watched[fd] = None

    def run(self, double until):
        """Call the sources of ready descriptors, until a time or `interrupt`. Signal handlers run in between.

        Args:
            until: Time of the monotonic clock, in seconds.

        Returns:
            Exceptions that sources raised. An exception does not keep other sources from being called.
        """
        cdef epoll_event events[EVENTS_MAX]
        cdef int count, at
        cdef bint late = False
        cdef list raised = []
        cdef object watched
        self.set_timer(until)
        while True:
            PyErr_CheckSignals()
            with nogil:
                count = epoll_wait(self.epoll, events, EVENTS_MAX, 0 if self.interrupted else -1)
            if count < 0 and errno != EINTR:
                raise OSError(errno, os.strerror(errno))
            for at in range(count):
                if events[at].data.fd == self.timer:
                    late = True
                    continue
                watched = self.source_of(events[at].data.fd)
                if watched is None:
                    continue
                try:
                    (<EventSource> watched).ready(events[at].events)
                except Exception as error:
                    raised.append(error)
            if late or self.interrupted or raised:
                self.interrupted = False
                return raised

    def interrupt(self):
        """Let `run` return after this turn. Only the thread of `run` may call it."""
        self.interrupted = True

    def close(self):
        """Drop all sources."""
        self.watched = []

    cdef object source_of(self, int fd):
        """Return the source of a descriptor, or None. Any number is valid."""
        return self.watched[fd] if 0 <= fd < len(self.watched) else None

    cdef int set_timer(self, double until) except -1:
        """Set the timer for `until`.

        A timeout of epoll_wait would cost a system timer at every wait; this timer costs it once.
        """
        cdef itimerspec when
        if until == self.armed:
            return 0
        when.it_interval.tv_sec = when.it_interval.tv_nsec = 0
        when.it_value.tv_sec = <time_t> until
        when.it_value.tv_nsec = <long> ((until - <double> when.it_value.tv_sec) * 1e9)
        if when.it_value.tv_sec == 0 and when.it_value.tv_nsec == 0:
            when.it_value.tv_nsec = 1       # 0 would disarm the timer
        if timerfd_settime(self.timer, TFD_TIMER_ABSTIME, &when, NULL) != 0:
            raise OSError(errno, os.strerror(errno))
        self.armed = until
        return 0

    cdef int change_interest(self, int operation, int fd, unsigned int events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.fd = fd
        if epoll_ctl(self.epoll, operation, fd, &event) != 0:
            raise OSError(errno, os.strerror(errno))
        return 0
