"""A clock that tests set: CLOCK_REALTIME of programs under test is off by what a file says, at once."""

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.peers import require_program

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset;
static int (*genuine)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *memory;
    genuine = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    if (fd < 0) return;
    memory = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED) offset = memory;
    close(fd);
}

int clock_gettime(clockid_t which, struct timespec *found)
{
    int result;
    if (!genuine) genuine = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    result = genuine(which, found);
    if (!result && offset && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        found->tv_sec += *offset;
    return result;
}

time_t time(time_t *found)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found) *found = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *found, void *zone)
{
    struct timespec now;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


@dataclass(frozen=True)
class Clock:
    """The clock of the programs that are started after `preload`."""

    library: Path
    file: Path

    def preload(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give it to all programs that the test starts from now on."""
        monkeypatch.setenv("LD_PRELOAD", str(self.library))
        monkeypatch.setenv("TEST_CLOCK", str(self.file))

    def step(self, seconds: int) -> None:
        """Set it: so many seconds ahead of the machine's own."""
        fd = os.open(self.file, os.O_RDWR)
        os.pwrite(fd, struct.pack("=q", seconds), 0)
        os.close(fd)


def require_clock(folder: Path) -> Clock:
    """Build it; the test is skipped where there is no C compiler."""
    compiler = require_program("gcc")
    source, library, file = folder / "clock.c", folder / "clock.so", folder / "clock"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    file.write_bytes(bytes(4096))
    return Clock(library, file)
