"""The order of training windows: batches of like length, so that little is padded; of so many windows, or tokens."""

from collections.abc import Iterator, Sequence

import torch
from datasets import Dataset
from torch.utils.data import BatchSampler, Sampler

from finetune.core.errors import Fault, ParameterError
from finetune.params.finetune import FinetuneParams

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


class TokenBudgetSampler(Sampler[list[int]]):
    """Batches of at most so many tokens each, padding among them: few long windows, or many short ones.

    Which windows stand together is drawn once, so that every epoch has as many batches; their order is that of the
    epoch (as fairseq's --max-tokens does it). Their number is a multiple of `batches_in_step`, as long as there are
    batches to divide, so that all steps, and all processes in them, have as many.
    """

    def __init__(self, lengths: Sequence[int], max_tokens: int, batches_in_step: int, seed: int) -> None:
        self.batches = _within_budget(lengths, max_tokens, torch.Generator().manual_seed(seed))
        self.seed = seed
        self.epoch = 0
        while missing := -len(self.batches) % batches_in_step:
            self.batches.sort(key=len, reverse=True)
            largest = [batch for batch in self.batches[:missing] if len(batch) > 1]
            if not largest:
                break
            self.batches[: len(largest)] = [half for batch in largest for half in (batch[::2], batch[1::2])]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the order is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + EPOCH_STRIDE * (self.epoch + 1))
        for i in torch.randperm(len(self), generator=generator).tolist():
            yield self.batches[i]


def _within_budget(lengths: Sequence[int], max_tokens: int, generator: torch.Generator) -> list[list[int]]:
    """Return batches, each of the windows of one random block that are next in length."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    block = BATCHES_IN_BLOCK * max_tokens * len(order) // sum(lengths)
    batches = []
    for first in range(0, len(order), block):
        left = sorted(order[first : first + block], key=lambda i: -lengths[i])
        while left:
            fitting = max_tokens // lengths[left[0]]
            batches.append(left[:fitting])
            left = left[fitting:]
    return batches


Order = LengthGroupedSampler | TokenBudgetSampler
Batches = BatchSampler | TokenBudgetSampler


def training_order(params: FinetuneParams, lengths: Sequence[int], processes: int) -> Order:
    """Return the order of training windows of so many tokens each. Raises: ParameterError if the longest has more."""
    in_step = params.gradient_accumulation_steps * processes
    if not params.max_tokens_per_batch:
        return LengthGroupedSampler(lengths, params.per_device_train_batch_size * in_step, params.seed)
    if params.max_tokens_per_batch < max(lengths):
        what = f"--max_tokens_per_batch {params.max_tokens_per_batch} is less than the longest window has"
        raise ParameterError(Fault(what, fix=f"--max_tokens_per_batch {max(lengths)}"))
    return TokenBudgetSampler(lengths, params.max_tokens_per_batch, in_step, params.seed)


def batches_of(order: Order, batch_size: int) -> Batches:
    """Return the batches of this order, over all processes; `batch_size` are the windows of each, unless tokens are."""
    if isinstance(order, TokenBudgetSampler):
        return order
    return BatchSampler(order, batch_size, drop_last=False)


def longer_lengths(windows: Dataset) -> list[int]:
    """Return the tokens of each window, or of its target where that is longer."""
    lengths = window_lengths(windows)
    if "labels" not in windows.column_names:
        return lengths
    return [max(pair) for pair in zip(lengths, window_lengths(windows, "labels"), strict=True)]


def by_length(lengths: Sequence[int]) -> list[int]:
    """Return the order of evaluation, as indices: longest first, so that memory runs out at once or not at all."""
    return torch.as_tensor(lengths).argsort(descending=True, stable=True).tolist()


def window_lengths(windows: Dataset, of: str = "input_ids") -> list[int]:
    """Return the tokens in each window, read from the Arrow offsets without building lists."""
    import pyarrow.compute

    column = windows.with_format("arrow")[:][of]
    return pyarrow.compute.list_value_length(column).to_pylist()  # type: ignore[no-any-return]
