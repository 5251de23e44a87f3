"""Find the largest batch that fits into memory, before processes or an engine depend on one another."""

import gc
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from finetune.core.console import say
from finetune.core.errors import Fault, ModelError
from finetune.data.batches import as_windows, collate
from finetune.data.sampler import window_lengths
from finetune.distributed.hangs import pulse
from finetune.distributed.process_group import all_reduce_any
from finetune.models.memory import out_of_memory, return_freed_memory
from finetune.models.prediction import autocast_for
from finetune.params.finetune import FinetuneParams
from finetune.tasks.answering import forward
from finetune.tasks.task import State, Task
from finetune.training.schedule import with_smaller_batch

# Bytes for each trained weight besides itself and its gradient: AdamW's two averages, and DDP's copy of the gradients
# or ZeRO's weights in 32 bits, none of which is sharded here.
STATES = 12


def batch_that_fits(
    params: FinetuneParams,
    model_for: Callable[[FinetuneParams], PreTrainedModel],
    windows: Dataset,
    task: Task[State],
    padding: dict[str, int],
) -> FinetuneParams:
    """Return the parameters with a batch whose longest windows fit everywhere. Raises: ModelError if none does."""
    length = window_lengths(windows)
    longest = sorted(range(len(length)), key=lambda i: -length[i])
    while True:
        pulse.reach()
        size = params.per_device_train_batch_size
        batch = collate(as_windows(windows.select(longest[:size])[:]), padding)
        if not all_reduce_any(not fits(model_for(params), batch, task, params.precision)):
            return params
        if size == 1:
            raise ModelError(Fault("memory runs out with one window at a time", fix="--gradient_checkpointing true"))
        params = with_smaller_batch(params)
        say(f"out of memory with {size} windows at a time; trying {params.per_device_train_batch_size}")


def fits(model: nn.Module, batch: dict[str, torch.Tensor], task: Task[State], precision: str) -> bool:
    """Return whether this process can go forward and backward, with room for what a step keeps besides."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model.to(device).train()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        room = torch.empty(STATES * trained, dtype=torch.uint8, device=device)
        here = {name: tensor.to(device) for name, tensor in batch.items()}
        with autocast_for(precision, device)():
            loss = task.objective.loss(forward(model, here, task.model.inputs), here).sum()
        loss.backward()
        del room, loss
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        del model
        gc.collect()
        clear_device_cache()
        return_freed_memory()
    return True
