"""Training without padding: the tokens of all windows of a batch as one row. B windows, T tokens in all, H heads.

Layers that look at one token at a time need no padding. Attention is told where windows begin: FlashAttention (Dao
2023) takes them as they are, with dropout; elsewhere it is computed over padded windows, and nothing else is.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.generic import ModelOutput

from finetune.core.errors import first_line
from finetune.data.batches import INDICES, Batch
from finetune.models.kernels import attention
from finetune.models.kernels.cuda_graphs import CudaGraphs

NAME = "padding_free"  # as an attention implementation of transformers
FLASH = (8, 0)  # compute capability of the GPUs that PyTorch's FlashAttention runs on


def forward(model: nn.Module | CudaGraphs, batch: Batch, inputs: frozenset[str], first_position: int) -> ModelOutput:
    """Return the model's outputs (B, L) or (B, L, C) of a batch of `collate_with_indices`; padding isn't computed.

    What the outputs hold for padding is 0. `first_position` is the position id of a window's first token.
    """
    indices, mask = batch[INDICES], batch["attention_mask"]
    length = mask.shape[1]
    row = {name: batch[name].flatten()[indices][None] for name in inputs & batch.keys() - {"attention_mask"}}
    begins = functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    outputs: ModelOutput = model(
        **row,
        position_ids=(indices % length + first_position)[None],
        cu_seq_lens_q=begins,
        max_length_q=length,
        **{INDICES: indices},
    )
    tensors = {name: tensor for name, tensor in outputs.items() if isinstance(tensor, Tensor)}  # no hidden states
    return type(outputs)(**{name: padded(tensor[0], indices, mask.shape) for name, tensor in tensors.items()})


def padded(tokens: Tensor, indices: Tensor, shape: torch.Size) -> Tensor:
    """Return (B, L, ...) of (T, ...), with 0 for padding; `shape` is (B, L)."""
    whole = tokens.new_zeros(shape.numel(), *tokens.shape[1:])
    return whole.index_copy(0, indices, tokens).view(*shape, *tokens.shape[1:])


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    token_indices: Tensor | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Return (1, T, H, D) of three (1, H, T, D), as transformers asks for it.

    `cu_seq_lens_q` (B + 1,) says where windows begin, and `max_length_q` is the longest of them. Padded batches come
    without: those of evaluation, and of whatever else is not a training step.
    """
    if cu_seq_lens_q is None or token_indices is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given
        )
        return found
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # 4 bits with adapters give 32, and no operator casts them
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    if has_flash(query):
        return _flash(query, key, value, cu_seq_lens_q, max_length_q, dropout, scaling)[None], None
    shape = torch.Size([len(cu_seq_lens_q) - 1, max_length_q])
    query, key, value = (padded(tensor, token_indices, shape).transpose(1, 2) for tensor in (query, key, value))
    looked_at = torch.arange(max_length_q, device=query.device) < cu_seq_lens_q.diff()[:, None]
    mask = looked_at[:, None, None].expand(-1, -1, max_length_q, -1)
    by = sdpa_attention_forward if query.is_cuda else attention.attend
    output, _ = by(module, query, key, value, mask, dropout=dropout, scaling=scaling)
    return output.flatten(0, 1).index_select(0, token_indices)[None], None


def has_flash(query: Tensor) -> bool:
    """Return whether PyTorch's FlashAttention computes this: on a GPU, in 16 bits."""
    in_16_bits = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and in_16_bits and _flash_is_right(query.dtype, query.shape[-1])


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _flash_is_right(dtype: torch.dtype, size: int) -> bool:
    return not why_no_flash(dtype, size)


@functools.cache
def why_no_flash(dtype: torch.dtype, size: int, device: str = "cuda") -> str:
    """Return why FlashAttention can't be used for heads of this size; "" where it gives what single windows give.

    It is tried once, outside a step: its operator is PyTorch's own affair, and may be another in the next version.
    """
    if size % 8 or size > 256:
        return f"heads have {size} numbers, not a multiple of 8 up to 256"
    if device == "cuda" and torch.cuda.get_device_capability() < FLASH:
        return "the GPU is older than Ampere"
    given = torch.arange(3 * 12 * 2 * size, device=device).sin().to(dtype).view(3, 12, 2, size).requires_grad_()
    begins = torch.tensor([0, 5, 12], device=device, dtype=torch.int32)
    try:
        with torch.enable_grad():
            query, key, value = given
            windows = [part.transpose(1, 2) for part in (given[:, :5], given[:, 5:])]
            alone = [functional.scaled_dot_product_attention(q, k, v).transpose(0, 1) for q, k, v in windows]
            both = (_flash(query, key, value, begins, 7, 0.0, None), torch.cat(alone))
            gradients = [torch.autograd.grad(output.float().square().sum(), given)[0] for output in both]
    except (RuntimeError, TypeError, AttributeError) as error:
        return first_line(error)
    near = all(torch.allclose(found.float(), wanted.float(), atol=5e-2) for found, wanted in (both, gradients))
    return "" if near else "its numbers differ from those of single windows"


def _flash(
    query: Tensor, key: Tensor, value: Tensor, begins: Tensor, longest: int, dropout: float, scaling: float | None
) -> Tensor:
    """Return (T, H, D) of three of them. (torch.nn.attention.varlen calls the same, but has no dropout.)"""
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, begins, begins, longest, longest, dropout, False, False, scale=scaling
    )[0]
    return output


def first_position(model: PreTrainedModel) -> int:
    """Return the position id of a window's first token: RoBERTa and its kin count from the one after padding's on."""
    padding: list[int] = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]
    return padding[0] if padding else 0


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
