"""The order of training windows: complete, repeatable, and of like length within a batch."""

from itertools import pairwise

import pytest
import torch

from finetune.data.sampler import LengthGroupedSampler, by_length

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
