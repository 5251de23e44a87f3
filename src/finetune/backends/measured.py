"""How fast each backend is: all take turns on the same windows with the same threads, and medians are compared."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from transformers import PreTrainedModel

from finetune.data.batches import Batch

TURNS = 3  # of each backend at least


@dataclass(frozen=True)
class Speed:
    """The speed of one backend."""

    p50_ms: float  # of a window alone
    windows_per_second: float  # in a batch


def speeds(
    models: Mapping[str, PreTrainedModel], windows: Sequence[Batch], batch: Batch, seconds: float
) -> dict[str, Speed]:
    """Return the speed of each model; of the `windows` each is a batch of one.

    Another load of the machine slows whoever's turn it is, hence turns and medians. The first turn of each, in which
    memory is taken and kernels are chosen, doesn't count.
    """
    alone: dict[str, list[float]] = {name: [] for name in models}
    together: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        _turn(model, [*windows, batch])
    end = time.perf_counter() + seconds
    turns = 0
    while turns < TURNS or time.perf_counter() < end:
        for name, model in models.items():
            *singles, all_at_once = _turn(model, [*windows, batch])
            alone[name] += singles
            together[name].append(all_at_once)
        turns += 1
    size = len(batch["input_ids"])
    return {name: Speed(1000 * median(alone[name]), size / median(together[name])) for name in models}


@torch.inference_mode()
def _turn(model: PreTrainedModel, batches: Sequence[Batch]) -> list[float]:
    """Return the seconds that each batch takes."""
    taken = []
    for batch in batches:
        started = time.perf_counter()
        model(**batch)
        taken.append(time.perf_counter() - started)
    return taken


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
