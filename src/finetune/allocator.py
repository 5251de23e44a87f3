"""glibc's allocator, told what a model on a CPU needs of it. No effect where the C library isn't glibc."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_GLIBC = platform.libc_ver()[0] == "glibc"


def keep_freed_memory() -> None:
    """For training: large blocks go back to the system at once, and each step asks for them again; kept, it is faster.

    Call before torch allocates.
    """
    if _GLIBC:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Batches of ever other lengths leave gaps in the heap, which would grow with their number."""
    if _GLIBC:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
