"""The loss of extractive question answering, and how far a model is from its teacher. B windows, L tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finetune.data.batches import Batch
from finetune.tasks.distillation import divergence
from finetune.tasks.task import Objective

if TYPE_CHECKING:
    import torch
    from transformers.utils.generic import ModelOutput

MASKED = -1e30  # a logit without probability, of which log-probabilities can still be subtracted


def loss(outputs: ModelOutput, batch: Batch) -> torch.Tensor:
    """Return (B,): the mean cross-entropy of start and end of each window.

    Padding is masked: transformers' own loss counts its logits in the softmax, so that the same rows give another
    loss at another padding (4.28 for 3.93 on a heavily padded batch).
    """
    from torch.nn import functional

    padded = batch["attention_mask"] == 0  # (B, L)
    start, end = (outputs[name].float().masked_fill(padded, -math.inf) for name in ("start_logits", "end_logits"))
    start_loss = functional.cross_entropy(start, batch["start_positions"], reduction="none")
    return (start_loss + functional.cross_entropy(end, batch["end_positions"], reduction="none")) / 2


def distance(outputs: ModelOutput, teacher: ModelOutput, batch: Batch, temperature: float) -> torch.Tensor:
    """Return (B,): the mean of the divergences of start and end from the teacher's, padding masked."""
    padded = batch["attention_mask"] == 0  # (B, L)
    pairs = ((outputs[name], teacher[name]) for name in ("start_logits", "end_logits"))
    start, end = (
        divergence(one.float().masked_fill(padded, MASKED), two.float().masked_fill(padded, MASKED), temperature)
        for one, two in pairs
    )
    return (start + end) / 2


def items(batch: Batch) -> torch.Tensor:
    """Return (B,): every window counts once."""
    return batch["start_positions"].new_ones(len(batch["start_positions"]))


OBJECTIVE = Objective(labels=frozenset({"start_positions", "end_positions"}), loss=loss, items=items, distance=distance)
