"""Memory: glibc's allocator, told what a model on a CPU needs of it, and errors that mean that none is left.

The allocator is left alone where the C library isn't glibc.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_GLIBC = platform.libc_ver()[0] == "glibc"

# oneDNN says no more than these where it gets no memory.
_PRIMITIVE = ("could not create a primitive", "could not execute a primitive", "could not create a memory object")


def out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the machine, whichever library asked for it."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or any(text in str(error) for text in (*_PRIMITIVE, "std::bad_alloc"))
    )


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
