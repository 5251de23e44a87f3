"""The order of training windows: batches of like length, so that little is padded."""

from collections.abc import Iterator, Sequence

import torch
from datasets import Dataset
from torch.utils.data import Sampler

EPOCH_STRIDE = 1_000_003  # so that another seed is not another epoch
BATCHES_IN_BLOCK = 50  # windows are sorted by length inside a random block of this many batches


class LengthGroupedSampler(Sampler[int]):
    """The order of windows: random blocks, sorted by length inside, divided into global batches, which are shuffled.

    The order depends on seed, epoch and the global batch alone, so that 1 process x 8, 2 x 4 and 4 windows with
    accumulation 2 take the same steps; it draws nothing from the global generator.
    """

    def __init__(self, lengths: Sequence[int], global_batch: int, seed: int) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.global_batch = global_batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the order is of; accelerate calls it at the beginning of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + EPOCH_STRIDE * self.epoch)
        order = torch.randperm(len(self), generator=generator)
        blocks = torch.split(order, BATCHES_IN_BLOCK * self.global_batch)
        batches = [b for block in blocks for b in torch.split(self._by_length(block), self.global_batch)]
        whole = [batch for batch in batches if len(batch) == self.global_batch]
        for i in torch.randperm(len(whole), generator=generator).tolist():
            yield from whole[i].tolist()
        for batch in batches:  # the last batch of the last block may not be full
            if len(batch) < self.global_batch:
                yield from batch.tolist()

    def _by_length(self, block: torch.Tensor) -> torch.Tensor:
        return block[self.lengths[block].argsort(descending=True, stable=True)]


def by_length(lengths: Sequence[int]) -> list[int]:
    """Return the order of evaluation, as indices: longest first, so that memory runs out at once or not at all."""
    return torch.as_tensor(lengths).argsort(descending=True, stable=True).tolist()


def window_lengths(windows: Dataset) -> list[int]:
    """Return the tokens in each window, read from the Arrow offsets without building lists."""
    import pyarrow.compute

    column = windows.with_format("arrow")[:]["input_ids"]
    return pyarrow.compute.list_value_length(column).to_pylist()  # type: ignore[no-any-return]
