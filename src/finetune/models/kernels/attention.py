"""Attention with dropout on a CPU. B windows, H heads, L tokens, D numbers in a head; N = B x H.

With dropout, PyTorch's fused attention has no kernel on CPUs, and falls back on operations over (N, L, L) one after
another. Here probabilities take the place of scores, the backward pass keeps them and 16 bits for each, and heads are
taken a few at a time, so that what the next operation reads is still in the processor's cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.models.kernels.dropout import can_draw, draw, scale

NAME = "cpu_kernels"  # as an attention implementation of transformers
AT_A_TIME = 1 << 18  # elements of (n, L, L): a megabyte in 32 bits. 2**17 and 2**19 were no faster, all at once slower


class _Attention(torch.autograd.Function):
    """softmax(query key^T x scaling + bias), dropped with probability p, times value."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, kept: Tensor | None, by: float
    ) -> Tensor:
        """Return (N, L, D), of three of them; `bias` is (N, 1, L), `kept` (N, L, L) as drawn, `by` the scaling."""
        length = query.shape[1]
        probabilities = query.new_empty(len(query), length, length)
        output = torch.empty_like(query)
        for n in _few_heads(len(query), length):
            own = probabilities[n]
            torch.baddbmm(own, query[n], key[n].transpose(1, 2), beta=0, alpha=by, out=own)
            if bias is not None:
                own.add_(bias[n])
            torch.softmax(own, -1, out=own)
            output[n] = torch.bmm(own if kept is None else own * kept[n], value[n])
        ctx.save_for_backward(query, key, value, probabilities, kept)
        ctx.by = by
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, probabilities, kept = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for n in _few_heads(len(query), query.shape[1]):
            own = probabilities[n]
            dropped = own.clone() if kept is None else own * kept[n]
            of_value[n] = torch.bmm(dropped.transpose(1, 2), gradient[n])
            of_own = torch.bmm(gradient[n], value[n].transpose(1, 2), out=dropped)
            if kept is not None:
                of_own.mul_(kept[n])
            of_scores = torch._softmax_backward_data(of_own, own, -1, own.dtype)
            of_query[n] = torch.bmm(of_scores, key[n])
            of_key[n] = torch.bmm(of_scores.transpose(1, 2), query[n])
        return of_query.mul_(ctx.by), of_key.mul_(ctx.by), of_value, None, None, None


def _few_heads(heads: int, length: int) -> Iterator[slice]:
    step = max(1, AT_A_TIME // length**2)
    for first in range(0, heads, step):
        yield slice(first, first + step)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Return (B, L, H, D) of three (B, H, L, D), as transformers asks for it; in evaluation by PyTorch's own kernel.

    `attention_mask` is that of `sdpa_mask`: (B, 1, L, L), true where a token is looked at, or None if all are.
    """
    if not module.training or (dropout and not can_draw(dropout)):
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given
        )
        return found
    windows, heads, length, size = query.shape
    many = (windows * heads, length, size)
    kept = draw((windows * heads, length, length), dropout, query.dtype) if dropout else None
    by = size**-0.5 if scaling is None else scaling
    if dropout:
        value = value * scale(dropout)  # what is kept counts for more: cheaper here than on (N, L, L)
    flat = (tensor.to(query.dtype).reshape(many) for tensor in (query, key, value))
    output: Tensor = _Attention.apply(*flat, _bias(attention_mask, query), kept, by)  # type: ignore[no-untyped-call]
    return output.view(windows, heads, length, size).transpose(1, 2).contiguous(), None


def _bias(attention_mask: Tensor | None, query: Tensor) -> Tensor | None:
    """Return (N, 1, L): 0 for tokens that are looked at, the least number for padding. All tokens see the same ones."""
    if attention_mask is None:
        return None
    windows, heads, length, _ = query.shape
    least = torch.finfo(query.dtype).min
    bias = torch.zeros(windows, 1, 1, length, dtype=query.dtype).masked_fill_(~attention_mask[:, :, :1], least)
    return bias.expand(-1, heads, -1, -1).reshape(windows * heads, 1, length)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
