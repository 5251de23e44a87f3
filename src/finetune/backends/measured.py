"""How fast each backend is: all take turns on the same windows with the same threads, and medians are compared."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from finetune.data.batches import Batch

TURNS = 3  # of each backend at least

Answer = Callable[[Batch], object]  # of a backend


@dataclass(frozen=True)
class Speed:
    """The speed of one backend."""

    p50_ms: float  # of a window alone
    windows_per_second: float  # in a batch


def speeds(answers: Mapping[str, Answer], windows: Sequence[Batch], batch: Batch, seconds: float) -> dict[str, Speed]:
    """Return the speed of each backend; of the `windows` each is a batch of one.

    Another load of the machine slows whoever's turn it is, hence turns and medians. The first turn of each, in which
    memory is taken and kernels are chosen, doesn't count.
    """
    alone: dict[str, list[float]] = {name: [] for name in answers}
    together: dict[str, list[float]] = {name: [] for name in answers}
    for answer in answers.values():
        _turn(answer, [*windows, batch])
    end = time.perf_counter() + seconds
    turns = 0
    while turns < TURNS or time.perf_counter() < end:
        for name, answer in answers.items():
            *singles, all_at_once = _turn(answer, [*windows, batch])
            alone[name] += singles
            together[name].append(all_at_once)
        turns += 1
    size = len(batch["input_ids"])
    return {name: Speed(1000 * median(alone[name]), size / median(together[name])) for name in answers}


@torch.inference_mode()
def _turn(answer: Answer, batches: Sequence[Batch]) -> list[float]:
    """Return the seconds that each batch takes."""
    taken = []
    for batch in batches:
        started = time.perf_counter()
        answer(batch)
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
