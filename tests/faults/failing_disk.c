/* Preloaded into a node: calls on files of a spool fail on demand, as those of a dying disk do.

   $FAILING_DISK is a folder. While it holds a file named like a call, that call fails with the number in the file
   as errno, and leaves a file with ".failed" after its name. fdatasync, writev, pread and openat fail for files
   below "partial", fsync and renameat for "ready". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static int fails(const char *call, int fd, const char *folder)
{
    char path[4096], target[4096], number[16] = "";
    const char *faults = getenv("FAILING_DISK");
    ssize_t length;
    int control;

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    length = readlink(path, target, sizeof target - 1);
    if (faults == NULL || length < 0)
        return 0;
    target[length] = 0;
    if (strstr(target, folder) == NULL)
        return 0;
    snprintf(path, sizeof path, "%s/%s", faults, call);
    control = NEXT(open)(path, O_RDONLY | O_CLOEXEC);
    if (control < 0)
        return 0;
    length = NEXT(read)(control, number, sizeof number - 1);
    NEXT(close)(control);
    snprintf(path, sizeof path, "%s/%s.failed", faults, call);
    control = NEXT(open)(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (control >= 0)
        NEXT(close)(control);
    errno = length > 0 ? atoi(number) : EIO;
    return 1;
}

int fdatasync(int fd)
{
    return fails("fdatasync", fd, "/partial/") ? -1 : NEXT(fdatasync)(fd);
}

int fsync(int fd)
{
    return fails("fsync", fd, "/ready") ? -1 : NEXT(fsync)(fd);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return fails("writev", fd, "/partial/") ? -1 : NEXT(writev)(fd, parts, count);
}

ssize_t pread(int fd, void *to, size_t count, off_t offset)
{
    return fails("pread", fd, "/partial/") ? -1 : NEXT(pread)(fd, to, count, offset);
}

ssize_t pread64(int fd, void *to, size_t count, off_t offset)
{
    return fails("pread", fd, "/partial/") ? -1 : NEXT(pread)(fd, to, count, offset);
}

int renameat(int from, const char *old, int to, const char *new)
{
    return fails("renameat", to, "/ready") ? -1 : NEXT(renameat)(from, old, to, new);
}

int openat(int folder, const char *path, int flags, ...)
{
    va_list more;
    mode_t mode;

    va_start(more, flags);
    mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    if (flags & O_CREAT && fails("openat", folder, "/partial"))
        return -1;
    return NEXT(openat)(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...)
{
    va_list more;
    mode_t mode;

    va_start(more, flags);
    mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    return openat(folder, path, flags, mode);
}
