"""The order of training windows: complete, repeatable, and of like length within a batch."""

from itertools import pairwise

import pytest
import torch
from datasets import Dataset

from finetune.core.errors import ParameterError
from finetune.data.sampler import (
    LengthGroupedSampler,
    TokenBudgetSampler,
    batches_of,
    by_length,
    longer_lengths,
    training_order,
)
from tests.params.test_rules import finetune_params

LENGTHS = torch.randint(10, 384, (3001,), generator=torch.Generator().manual_seed(1)).tolist()


def order(seed: int = 3, epoch: int = 0, global_batch: int = 16, lengths: list[int] = LENGTHS) -> list[int]:
    sampler = LengthGroupedSampler(lengths, global_batch, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padding_share(indices: list[int], batch: int) -> float:
    """The share of padding where each batch is padded to its longest window."""
    batches = [[LENGTHS[i] for i in indices[k : k + batch]] for k in range(0, len(indices), batch)]
    return 1 - sum(LENGTHS) / sum(max(lengths) * len(lengths) for lengths in batches)


@pytest.mark.parametrize("count", [0, 1, 7, 16, 800, 801, 3001])
@pytest.mark.parametrize("global_batch", [1, 16, 5000])
def test_every_index_once(count: int, global_batch: int) -> None:
    indices = order(global_batch=global_batch, lengths=LENGTHS[:count])
    assert sorted(indices) == list(range(count))
    assert len(LengthGroupedSampler(LENGTHS[:count], global_batch, 0)) == count


def test_same_order_again() -> None:
    assert order(seed=5, epoch=2) == order(seed=5, epoch=2)


def test_other_seed_epoch_or_batch_is_another_order() -> None:
    orders = [order(), order(seed=4), order(epoch=7), order(global_batch=8)]
    assert len({tuple(indices) for indices in orders}) == 4


def test_epochs_of_one_sampler() -> None:
    """The order of an epoch is the same whether or not the epochs before it were run, as resuming needs."""
    sampler = LengthGroupedSampler(LENGTHS, 16, 3)
    list(sampler)
    sampler.set_epoch(4)
    assert list(sampler) == order(epoch=4)


def test_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = order()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert order() == first


@pytest.mark.parametrize("batch", [8, 16, 32])
def test_little_padding(batch: int) -> None:
    shuffled = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(2)).tolist()
    assert padding_share(shuffled, batch) > 0.3
    assert padding_share(order(global_batch=batch), batch) < 0.03


def test_batches_are_shuffled_and_the_short_one_is_last() -> None:
    """Lengths must not fall through the epoch; only the last batch may be short, or all later ones would be cut."""
    indices = order()
    longest = [max(LENGTHS[i] for i in indices[k : k + 16]) for k in range(0, 3001 - 16, 16)]
    rises = sum(after > before for before, after in pairwise(longest))
    assert 0.4 < rises / (len(longest) - 1) < 0.6
    spreads = [max(v) - min(v) for k in range(0, 2992, 16) if (v := [LENGTHS[i] for i in indices[k : k + 16]])]
    assert max(spreads) < 40


def test_evaluation_begins_with_the_longest() -> None:
    assert by_length([3, 9, 1, 9]) == [1, 3, 0, 2]


def padded_tokens(batch: list[int], lengths: list[int] = LENGTHS) -> int:
    return len(batch) * max(lengths[i] for i in batch)


@pytest.mark.parametrize("count", [1, 3, 16, 801, 3001])
@pytest.mark.parametrize("in_step", [1, 4, 6])
@pytest.mark.parametrize("budget", [384, 4096, 1_000_000])
def test_batches_of_so_many_tokens(count: int, in_step: int, budget: int) -> None:
    """Every window once, no batch above the budget, and in every epoch as many, which processes can share."""
    sampler = TokenBudgetSampler(LENGTHS[:count], budget, in_step, seed=3)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(count))
        assert all(0 < padded_tokens(batch) <= budget for batch in batches)
        assert len(batches) == len(sampler) and (len(batches) % in_step == 0 or len(batches) == count)


def test_batches_of_tokens_are_full_and_of_like_length() -> None:
    batches = list(TokenBudgetSampler(LENGTHS, 4096, 4, seed=3))
    assert sum(padded_tokens(batch) for batch in batches) > 0.93 * 4096 * len(batches)
    assert sum(LENGTHS) > 0.97 * sum(padded_tokens(batch) for batch in batches)
    assert min(map(len, batches)) < 12 and max(map(len, batches)) > 60


def test_the_order_of_batches_is_that_of_seed_and_epoch() -> None:
    def order_of(seed: int, epoch: int) -> list[list[int]]:
        sampler = TokenBudgetSampler(LENGTHS, 4096, 1, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order_of(3, 1) == order_of(3, 1) != order_of(3, 2) != order_of(4, 2)
    assert sorted(order_of(3, 1)) == sorted(order_of(3, 2)) != sorted(order_of(4, 2))


def test_two_processes_and_one_that_accumulates_take_the_same_steps() -> None:
    accumulated = training_order(finetune_params(max_tokens_per_batch=512, gradient_accumulation_steps=2), LENGTHS, 1)
    shared = training_order(finetune_params(max_tokens_per_batch=512), LENGTHS, 2)
    assert list(batches_of(accumulated, 1)) == list(batches_of(shared, 1))


def test_a_window_longer_than_a_batch_may_be_is_refused() -> None:
    with pytest.raises(
        ParameterError, match=r"--max_tokens_per_batch 382 is less than .*\n.*fix: --max_tokens_per_batch 383"
    ):
        training_order(finetune_params(max_tokens_per_batch=382), LENGTHS, 1)
    training_order(finetune_params(max_tokens_per_batch=383), LENGTHS, 1)


def test_a_target_counts_where_it_is_longer() -> None:
    windows = Dataset.from_dict({"input_ids": [[1, 2, 3], [1]], "labels": [[1], [1, 2]]})
    assert longer_lengths(windows) == [3, 2]
    assert longer_lengths(windows.remove_columns("labels")) == [3, 1]
