"""Declarations of POSIX and Linux functions that Cython does not ship."""

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, void *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_signal(pthread_cond_t *)
    int pthread_cond_broadcast(pthread_cond_t *)
    int pthread_cond_destroy(pthread_cond_t *)

cdef extern from "fcntl.h" nogil:
    int openat(int, const char *, int, ...)
    int sync_file_range(int, long long, long long, unsigned int)
    enum: O_CLOEXEC
    enum: O_NOFOLLOW
    enum: SYNC_FILE_RANGE_WRITE

cdef extern from "sys/file.h" nogil:
    int flock(int, int)
    enum: LOCK_EX
    enum: LOCK_NB
    enum: LOCK_SH

cdef extern from "stdio.h" nogil:
    int renameat(int, const char *, int, const char *)

cdef extern from "unistd.h" nogil:
    int unlinkat(int, const char *, int)

cdef extern from *:
    """
    #include <errno.h>
    #include <unistd.h>

    /* Some file systems (SMB, 9p) cannot fsync a folder. For those use syncfs instead. It writes the whole
       file system, so it also makes the names in this folder durable. */
    static inline int sync_folder(int fd) {
        if (fsync(fd) == 0)
            return 0;
        if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
            return -1;
        return syncfs(fd);
    }
    """
    int sync_folder(int) nogil

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data:
        int fd
    cdef struct epoll_event:
        unsigned int events
        epoll_data data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)
    enum: EPOLL_CLOEXEC
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CTL_DEL
    enum: EPOLLIN
    enum: EPOLLOUT
