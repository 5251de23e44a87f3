"""What libraries say when memory runs out, and whether another model fits."""

import pytest
import torch
from transformers import BertConfig, BertModel

from finetune.models.memory import out_of_memory, room_for

SAID = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 14.58 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "NCCL error in: NCCLUtils.hpp:93, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    "could not create a primitive",
    "std::bad_alloc",
]


@pytest.mark.parametrize("text", SAID)
def test_what_libraries_say(text: str) -> None:
    assert out_of_memory(RuntimeError(text))


def test_other_errors() -> None:
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("whatever", "more"))
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not out_of_memory(ValueError("std::bad_alloc"))


def test_room_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BertModel(BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=1, intermediate_size=32))
    size = 4 * model.num_parameters()
    assert room_for(model, torch.device("cpu"))
    for free, fits in ((1.25 * size, True), (1.1 * size, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (int(free), 10**12))
        assert room_for(model, torch.device("cuda:1")) is fits
