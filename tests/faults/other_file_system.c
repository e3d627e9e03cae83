/* Preloaded into a node: the file system below some folders lacks calls that ext4 has, as those of other machines do.

   Each variable names a folder below which a call behaves otherwise:
   NO_LINK    linkat and link fail with EOPNOTSUPP: vfat, exFAT, SMB.
   NO_RENAME  renameat2 with a flag fails with EINVAL: NFS, 9p.
   NO_SYNC    fsync of a folder fails with EINVAL: SMB of older kernels, 9p.
   NO_DISK    fsync fails with EIO, as long as the file $NO_DISK_WHILE is there.
   NO_SYNCFS  syncfs fails with EIO.
   NO_SOCKET  bind of a Unix socket fails with EPERM: SMB, vfat.
   NO_CHMOD   chmod fails with EPERM: vfat.
   LOCAL      locks, of whatever kind, are always had: a mount that keeps locks to each host. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static int below(const char *variable, int fd, const char *path)
{
    char link[64], target[4096];
    const char *folder = getenv(variable);
    ssize_t length;

    if (folder == NULL)
        return 0;
    if (path != NULL && path[0] == '/')
        return strncmp(path, folder, strlen(folder)) == 0;
    if (fd == AT_FDCWD) {
        if (getcwd(target, sizeof target) == NULL)
            return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        length = readlink(link, target, sizeof target - 1);
        if (length < 0)
            return 0;
        target[length] = 0;
    }
    return strncmp(target, folder, strlen(folder)) == 0;
}

static int refuse(int number)
{
    errno = number;
    return -1;
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    return below("NO_LINK", to_dir, to) ? refuse(EOPNOTSUPP) : NEXT(linkat)(from_dir, from, to_dir, to, flags);
}

int link(const char *from, const char *to)
{
    return below("NO_LINK", AT_FDCWD, to) ? refuse(EOPNOTSUPP) : NEXT(link)(from, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned int flags)
{
    if (flags && below("NO_RENAME", to_dir, to))
        return refuse(EINVAL);
    return NEXT(renameat2)(from_dir, from, to_dir, to, flags);
}

int fsync(int fd)
{
    struct stat facts;

    if (below("NO_DISK", fd, NULL) && access(getenv("NO_DISK_WHILE"), F_OK) == 0)
        return refuse(EIO);
    if (below("NO_SYNC", fd, NULL) && fstat(fd, &facts) == 0 && S_ISDIR(facts.st_mode))
        return refuse(EINVAL);
    return NEXT(fsync)(fd);
}

int syncfs(int fd)
{
    return below("NO_SYNCFS", fd, NULL) ? refuse(EIO) : NEXT(syncfs)(fd);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    if (address->sa_family == AF_UNIX && below("NO_SOCKET", AT_FDCWD, ((struct sockaddr_un *) address)->sun_path))
        return refuse(EPERM);
    return NEXT(bind)(fd, address, length);
}

int chmod(const char *path, mode_t mode)
{
    return below("NO_CHMOD", AT_FDCWD, path) ? refuse(EPERM) : NEXT(chmod)(path, mode);
}

int flock(int fd, int operation)
{
    return below("LOCAL", fd, NULL) ? 0 : NEXT(flock)(fd, operation);
}

static int control(const char *name, int fd, int command, void *argument)
{
    int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;

    if (locks && below("LOCAL", fd, NULL))
        return 0;
    return ((int (*)(int, int, void *)) dlsym(RTLD_NEXT, name))(fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, command);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return control("fcntl", fd, command, argument);
}

int fcntl64(int fd, int command, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, command);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return control("fcntl64", fd, command, argument);
}
