"""Attention in training against the formula in 64 bits, with the same mask; and PyTorch's own in evaluation."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from finetune.models.kernels import attention
from finetune.models.kernels.attention import attend
from finetune.models.kernels.dropout import draw, dropped_values

P = 0.1
SHAPES = {"a few heads at a time": (2, 3, 300, 8), "all at once": (3, 4, 24, 16), "longer than a part": (1, 2, 600, 4)}
MODULE = nn.Module()  # in training
MODULE.is_causal = False  # type: ignore[assignment]


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and the gradient of the output; the first three as a model has them, (B, L, H, D) turned."""
    torch.manual_seed(1)
    windows, heads, length, size = shape
    found = [torch.randn(windows, length, heads, size, dtype=torch.float64).to(dtype) for _ in range(4)]
    return [*(tensor.requires_grad_() for tensor in found[:3]), found[3]]


def padding(shape: tuple[int, ...], padded: bool) -> Tensor | None:
    """The last third of every other window is padding."""
    windows, _, length, _ = shape
    if not padded:
        return None
    seen = torch.ones(windows, 1, 1, length, dtype=torch.bool)
    seen[::2, ..., -(length // 3) :] = False
    return seen.expand(-1, 1, length, -1)


def with_gradients(output: Tensor, given: list[Tensor]) -> list[Tensor]:
    output.backward(given[3])
    return [output.detach(), *(tensor.grad for tensor in given[:3] if tensor.grad is not None)]


def computed(shape: tuple[int, ...], dtype: torch.dtype, padded: bool, p: float) -> list[Tensor]:
    given = tensors(shape, dtype)
    torch.manual_seed(2)
    output, _ = attend(MODULE, *(t.transpose(1, 2) for t in given[:3]), padding(shape, padded), dropout=p)
    return with_gradients(output, given)


def by_formula(shape: tuple[int, ...], dtype: torch.dtype, padded: bool, p: float) -> list[Tensor]:
    """In 64 bits, of the numbers that `dtype` can hold, and with the same draws."""
    given = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors(shape, dtype)]
    query, key, value = (tensor.transpose(1, 2) for tensor in given[:3])
    scores = query @ key.transpose(2, 3) / math.sqrt(shape[-1])
    mask = padding(shape, padded)
    probabilities = scores.masked_fill(~mask if mask is not None else torch.tensor(False), -math.inf).softmax(-1)
    torch.manual_seed(2)
    if p:
        windows, heads, length, _ = shape
        probabilities = probabilities * draw((windows * heads, length, length), p, torch.float64).view_as(probabilities)
        probabilities = probabilities / (1 - dropped_values(p) / 65536)
    return with_gradients((probabilities @ value).transpose(1, 2), given)


@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-13), (torch.float32, 3e-6), (torch.bfloat16, 3e-2)])
def test_equals_the_formula(shape: tuple[int, ...], dtype: torch.dtype, off: float, padded: bool, p: float) -> None:
    """Output and three gradients; differences are measured against the largest number of each."""
    for found, wanted in zip(computed(shape, dtype, padded, p), by_formula(shape, dtype, padded, p), strict=True):
        assert found.shape == wanted.shape and found.dtype == dtype
        assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < off


def test_the_share_that_is_dropped() -> None:
    """Seen from outside: of one-hot values, each output is a kept probability."""
    windows, heads, length = 8, 4, 48
    query, key = torch.randn(2, windows, heads, length, length)
    value = torch.eye(length).expand(windows, heads, -1, -1)
    torch.manual_seed(3)
    output, _ = attend(MODULE, query, key, value, None, dropout=P)
    exact = dropped_values(P) / 65536
    deviation = math.sqrt(exact * (1 - exact) / output.numel())
    assert abs(float((output == 0).double().mean()) - exact) < 5 * deviation


def test_evaluation_is_pytorchs_own() -> None:
    shape = SHAPES["all at once"]
    query, key, value = (tensor.transpose(1, 2) for tensor in tensors(shape, torch.float32)[:3])
    module, mask = nn.Module().eval(), padding(shape, True)
    found, _ = attend(module, query, key, value, mask, dropout=0.0, scaling=0.3)
    wanted, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=0.0, scaling=0.3)
    assert torch.equal(found, wanted)


def test_parts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES["all at once"]
    whole = computed(shape, torch.float64, True, P)
    monkeypatch.setattr(attention, "AT_A_TIME", 1)
    for found, wanted in zip(computed(shape, torch.float64, True, P), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
