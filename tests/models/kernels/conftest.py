"""FlashAttention where there is no GPU."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.models.kernels import padding_free


def by_formula(
    query: Tensor, key: Tensor, value: Tensor, begins: Tensor, ends: Tensor, *others: Any, scale: float | None
) -> tuple[Tensor]:
    """FlashAttention's arguments, computed window by window, without its dropout."""
    assert torch.equal(begins, ends) and begins.dtype == torch.int32
    assert others[0] == others[1] >= begins.diff().max() and others[3:] == (False, False)  # not causal, no debugging
    parts = []
    for start, end in pairwise(begins.tolist()):
        scores = torch.einsum("qhd,khd->hqk", query[start:end], key[start:end])
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[start:end]))
    return (torch.cat(parts),)


@pytest.fixture
def flash_by_formula(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Attention by FlashAttention's formula, where there is no GPU; returns the dropouts asked for."""
    asked: list[float] = []

    def noted(*given: Any, scale: float | None) -> tuple[Tensor]:
        asked.append(given[7])
        return by_formula(*given, scale=scale)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", noted)
    monkeypatch.setattr(padding_free, "has_flash", lambda query: True)
    return asked
