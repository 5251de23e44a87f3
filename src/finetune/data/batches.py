"""Make batches of windows: arrays or tensors padded to the longest window. B windows, L tokens."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from finetune.core.types import Json

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
INDICES = "token_indices"
Columns = dict[str, list[Any]]
Batch = dict[str, "torch.Tensor"]
Arrays = dict[str, "np.ndarray"]


def stack(windows: Sequence[Json], padding: dict[str, int]) -> Arrays:
    """Return a batch: lists as arrays (B, L), padded on the right to the longest window, plain numbers as (B,)."""
    batch: Arrays = {}
    for name, first in windows[0].items():
        if np.ndim(first) == 0:
            batch[name] = np.array([window[name] for window in windows])
            continue
        length = max(len(window[name]) for window in windows)
        batch[name] = np.full((len(windows), length), padding.get(name, 0), dtype=np.int64)
        for i, window in enumerate(windows):
            batch[name][i, : len(window[name])] = window[name]
    return batch


def collate(windows: Sequence[Json], padding: dict[str, int]) -> Batch:
    """Return a batch of tensors, as `stack` pads them."""
    import torch

    return {name: torch.from_numpy(array) for name, array in stack(windows, padding).items()}


def collate_with_indices(windows: Sequence[Json], padding: dict[str, int]) -> Batch:
    """Return a batch of tensors with a column more, `token_indices` (T,): where in B x L its T tokens are.

    They are counted where the batch is made: a GPU would have to be waited for to know T.
    """
    batch = collate(windows, padding)
    batch[INDICES] = batch["attention_mask"].flatten().nonzero()[:, 0]
    return batch


def concatenated(parts: Sequence[Json]) -> Json:
    """Return the rows of all parts, arrays or tensors; those that are less wide are padded on the right with -1."""
    return {name: _concatenated([part[name] for part in parts]) for name in parts[0]}


def _concatenated(arrays: Sequence[Any]) -> Any:
    from array_api_compat import array_namespace

    xp = array_namespace(arrays[0])
    if arrays[0].ndim < 2:
        return xp.concat(arrays)
    width = max(array.shape[1] for array in arrays)
    padded = []
    for array in arrays:
        missing = (array.shape[0], width - array.shape[1])
        padding = xp.full(missing, -1, dtype=array.dtype, device=array.device)
        padded.append(xp.concat([array, padding], axis=1))
    return xp.concat(padded)


def as_windows(columns: Columns) -> list[Json]:
    """Return one dict for each window, of columns that have an entry for each."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return so many of the items, at equal distances, or all where there are fewer."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)


def by_length(windows: Sequence[Json], batch_size: int) -> Iterator[list[Json]]:
    """Yield the windows of each batch, the longest first: those of like length stand together, so little is padded."""
    order = sorted(windows, key=lambda window: -len(window["input_ids"]))
    for i in range(0, len(order), batch_size):
        yield order[i : i + batch_size]


def batches_by_length(
    windows: Sequence[Json], batch_size: int, padding: dict[str, int], device: "torch.device | str"
) -> Iterator[Batch]:
    """Yield batches (B, L) of windows of like length; "row" (B,) says whose they are."""
    for some in by_length(windows, batch_size):
        yield {name: tensor.to(device) for name, tensor in collate(some, padding).items()}
