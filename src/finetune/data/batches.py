"""Make batches of windows: tensors padded to the longest window. B windows, L tokens."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from finetune.core.types import Json

T = TypeVar("T")
Columns = dict[str, list[Any]]
Batch = dict[str, torch.Tensor]


def collate(windows: Sequence[Json], padding: dict[str, int]) -> Batch:
    """Return a batch: lists as tensors (B, L), padded on the right to the longest window, plain numbers as (B,)."""
    batch: Batch = {}
    for name, first in windows[0].items():
        if np.ndim(first) == 0:
            batch[name] = torch.tensor([window[name] for window in windows])
            continue
        length = max(len(window[name]) for window in windows)
        filled = np.full((len(windows), length), padding.get(name, 0), dtype=np.int64)
        for i, window in enumerate(windows):
            filled[i, : len(window[name])] = window[name]
        batch[name] = torch.from_numpy(filled)
    return batch


def as_windows(columns: Columns) -> list[Json]:
    """Return one dict for each window, of columns that have an entry for each."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return so many of the items, at equal distances, or all where there are fewer."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)


def batches_by_length(
    windows: Sequence[Json], batch_size: int, padding: dict[str, int], device: torch.device | str
) -> Iterator[Batch]:
    """Yield batches (B, L) of windows of like length, so that little is padded; "row" (B,) says whose they are."""
    order = sorted(range(len(windows)), key=lambda i: -len(windows[i]["input_ids"]))
    for i in range(0, len(order), batch_size):
        batch = collate([windows[k] for k in order[i : i + batch_size]], padding)
        yield {name: tensor.to(device) for name, tensor in batch.items()}
