"""Windows -> batches: tensors padded to the longest window."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from finetune.core.types import Json

Columns = dict[str, list[Any]]
Batch = dict[str, torch.Tensor]


def collate(windows: Sequence[Json], padding: dict[str, int]) -> Batch:
    """Windows of unequal length -> tensors (B, L) padded on the right to the longest, and (B,) for plain numbers."""
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
    """Columns of equal length -> one dict for each window."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def batches_by_length(
    windows: Sequence[Json], batch_size: int, padding: dict[str, int], device: torch.device | str
) -> Iterator[Batch]:
    """Batches of windows of like length, so that little is padded. The "row" column says whose each is."""
    order = sorted(range(len(windows)), key=lambda i: -len(windows[i]["input_ids"]))
    for i in range(0, len(order), batch_size):
        batch = collate([windows[k] for k in order[i : i + batch_size]], padding)
        yield {name: tensor.to(device) for name, tensor in batch.items()}
