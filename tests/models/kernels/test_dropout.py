"""Dropout drawn four elements at a time: the distribution, the generator and the gradient of PyTorch's own."""

import itertools
import math

import pytest
import torch
from torch import nn

from finetune.models.kernels.dropout import OF_WORD, VALUES, Dropout, can_draw, draw, dropped_values

DRAWS = 4_000_000
SHARES = (0.02, 0.1, 0.5, 0.9)  # below a half the highest of the 16 bits is set, above it isn't
SIGMAS = 5  # of a count: one in three million right ones would be farther off, and the seed is fixed


@pytest.mark.parametrize("p", SHARES)
def test_the_share_that_is_dropped(p: float) -> None:
    """At each of the four places of a 64-bit word, and equal to p to half of a 65,536th."""
    torch.manual_seed(1)
    of_place = draw((DRAWS,), p, torch.float32).view(-1, OF_WORD)
    exact = dropped_values(p) / VALUES
    assert abs(exact - p) <= 0.5 / VALUES
    deviation = math.sqrt(exact * (1 - exact) / len(of_place))
    for share in (of_place == 0).double().mean(0).tolist():
        assert abs(share - exact) < SIGMAS * deviation


@pytest.mark.parametrize("p", SHARES)
def test_elements_are_independent(p: float) -> None:
    """All 256 patterns of eight neighbours, of two words, are as frequent as they should be: Pearson's chi-square."""
    torch.manual_seed(2)
    eight = draw((DRAWS,), p, torch.float32).view(-1, 8).long()
    found = torch.bincount((eight << torch.arange(8)).sum(1), minlength=256).double()
    dropped = dropped_values(p) / VALUES
    patterns = itertools.product((dropped, 1 - dropped), repeat=8)
    shares = [math.prod(pattern) for pattern in patterns]
    wanted = torch.tensor(shares, dtype=torch.float64) * len(eight)  # a pattern and its mirror image are as likely
    often = wanted >= 5  # of less the statistic says nothing
    statistic = float(((found - wanted)[often] ** 2 / wanted[often]).sum())
    degrees = int(often.sum())
    assert statistic < degrees + SIGMAS * math.sqrt(2 * degrees)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 64, 384, 1536])
def test_no_correlation_with_what_comes_later(lag: int) -> None:
    torch.manual_seed(3)
    kept = draw((DRAWS,), 0.1, torch.float32).double()
    kept = (kept - kept.mean()) / kept.std()
    assert abs(float((kept[lag:] * kept[:-lag]).mean())) < SIGMAS / math.sqrt(DRAWS)


def test_as_many_as_pytorch_drops() -> None:
    """The number of zeros in each of 4,000 rows: mean and variance are those of a binomial, as PyTorch's are."""
    rows, width, p = 4000, 1000, 0.1
    found = []
    for kind in (Dropout, nn.Dropout):
        torch.manual_seed(4)
        zeros = (kind(p)(torch.ones(rows, width)) == 0).sum(1).double()
        found.append((float(zeros.mean()), float(zeros.var())))
    variance = width * p * (1 - p)
    for mean, spread in found:
        assert abs(mean - width * p) < SIGMAS * math.sqrt(variance / rows)
        assert abs(spread - variance) < SIGMAS * variance * math.sqrt(2 / rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 5, 9)])
def test_values_and_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What is kept is scaled, and its gradient too; what is dropped is 0, and has none."""
    scaled = 65536 / (65536 - 26214)  # of 0.4, to a 131,072nd
    inputs = torch.full(shape, 3.0, dtype=dtype, requires_grad=True)
    torch.manual_seed(5)
    found = Dropout(0.4)(inputs)
    torch.manual_seed(5)
    kept = draw(shape, 0.4, torch.float32)
    assert (found.dtype, kept.unique().tolist()) == (dtype, [0, 1] if len(shape) > 1 else kept.unique().tolist())
    assert torch.equal(found, (inputs.detach() * kept * scaled).to(dtype))
    found.backward(torch.full_like(found, 2.0))
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, (torch.full(shape, 2.0, dtype=dtype) * kept * scaled).to(dtype))


def test_the_generator_is_pytorchs() -> None:
    """A state that was saved, as checkpoints do, gives the same draws again; later ones are others."""
    layer, inputs = Dropout(0.5), torch.ones(1001)
    torch.manual_seed(6)
    first = layer(inputs)
    state = torch.get_rng_state()
    second = layer(inputs)
    torch.set_rng_state(state)
    assert torch.equal(layer(inputs), second) and not torch.equal(first, second)
    torch.manual_seed(6)
    assert torch.equal(layer(inputs), first)


@pytest.mark.parametrize("p", [0.0, 1e-6, 1 - 1e-6, 1.0])
def test_what_16_bits_cannot_tell_is_pytorchs(p: float) -> None:
    assert not can_draw(p)
    inputs = torch.ones(100)
    torch.manual_seed(7)
    found = Dropout(p)(inputs)
    torch.manual_seed(7)
    assert torch.equal(found, nn.Dropout(p)(inputs))


def test_nothing_is_dropped_in_evaluation() -> None:
    inputs = torch.randn(100)
    assert Dropout(0.5).eval()(inputs) is inputs


def test_draws_of_bf16_are_the_same() -> None:
    """The same elements, in the type that they are multiplied with."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(8)
        found[dtype] = draw((3, 1001), 0.3, dtype)
    assert [one.dtype for one in found.values()] == [torch.int16, torch.bfloat16]
    assert torch.equal(found[torch.float32].bfloat16(), found[torch.bfloat16])
