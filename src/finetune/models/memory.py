"""Settings of glibc's allocator for models on a CPU, and the errors that mean that no memory is left.

The settings are left alone where the C library isn't glibc.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_GLIBC = platform.libc_ver()[0] == "glibc"

# oneDNN says no more than these where it gets no memory.
_PRIMITIVE = ("could not create a primitive", "could not execute a primitive", "could not create a memory object")


def out_of_memory(error: BaseException) -> bool:
    """Return whether the GPU or the machine has no memory left, whichever library asked for it."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or any(text in str(error) for text in (*_PRIMITIVE, "std::bad_alloc"))
    )


def keep_freed_memory() -> None:
    """Keep large freed blocks, which makes training faster: each step would ask again for those that go back.

    It has to be called before torch allocates.
    """
    if _GLIBC:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give the gaps in the heap back, which batches of other lengths leave and which would grow with their number."""
    if _GLIBC:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
