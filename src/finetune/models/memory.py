"""Settings of glibc's allocator and of Python's collector, and the errors that mean that no memory is left.

The allocator is left alone where the C library isn't glibc.
"""

import ctypes
import gc
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_GLIBC = platform.libc_ver()[0] == "glibc"

# What libraries say where they get no memory, besides what accelerate knows: oneDNN, the C++ library, CUDA's runtime
# and driver, cuBLAS, and NCCL ("Cuda failure 2 'out of memory'").
_NO_MEMORY = (
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory object",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "'out of memory'",
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether the GPU or the machine has no memory left, whichever library asked for it."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or any(text in str(error) for text in _NO_MEMORY)
    )


def room_for(model: "PreTrainedModel", device: "torch.device") -> bool:
    """Return whether the device has memory for one more such model in 32 bits, and a fifth of that to compute in."""
    import torch

    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return free > 1.2 * 4 * model.num_parameters()


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


def leave_out_the_libraries() -> None:
    """Keep what is in memory by now out of later collections of garbage, each of which took half a second.

    The Trainer and accelerate collect at the beginning and at the end of training; torch, transformers and MLflow have
    made a million objects by then, which live as long as the process.
    """
    gc.collect()
    gc.freeze()
