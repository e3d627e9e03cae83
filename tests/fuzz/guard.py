"""Memory that ends at a page nobody may touch: a read or write one byte too far stops the process."""

import ctypes
import mmap

import hypothesis

PROT_NONE = 0
ROOM = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)
_pages = mmap.mmap(-1, ROOM + mmap.PAGESIZE)
_address = ctypes.addressof(ctypes.c_char.from_buffer(_pages))
if _libc.mprotect(ctypes.c_void_p(_address + ROOM), ctypes.c_size_t(mmap.PAGESIZE), PROT_NONE):
    raise OSError(ctypes.get_errno(), "mprotect")


def window(size: int) -> memoryview:
    """Writable memory of `size` bytes; the byte after it is out of bounds. Calls share the same memory."""
    hypothesis.assume(0 < size <= ROOM)
    return memoryview(_pages)[ROOM - size : ROOM]


def guarded(data: bytes) -> memoryview:
    """`data` at the very end of what may be read."""
    if not data:
        return memoryview(b"")
    view = window(len(data))
    view[:] = data
    return view
