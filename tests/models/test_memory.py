"""What libraries say when memory runs out, whether another model fits, and what collections of garbage go through."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from finetune import run
from finetune.models.memory import out_of_memory, room_for
from finetune.training.trainer import FinetuneTrainer
from tests.conftest import finetune_words

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


@pytest.mark.slow
def test_training_collects_no_garbage_among_the_libraries(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each collection would take half a second; what garbage there was is gone, not kept for ever."""
    seen: list[int] = []
    step = FinetuneTrainer.training_step

    def looking(*arguments: Any) -> Any:
        seen.extend((len(gc.get_objects()), gc.get_freeze_count()))
        return step(*arguments)

    class Circle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            collected.append(True)

    collected: list[bool] = []
    Circle()
    gc.unfreeze()
    monkeypatch.setattr(FinetuneTrainer, "training_step", looking)
    gc.disable()
    try:
        run.main(finetune_words(prepared, tmp_path, max_steps=1))
    finally:
        gc.enable()
    traversed, left_out = seen
    assert traversed < 100_000 < left_out and collected == [True]
