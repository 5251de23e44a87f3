"""The loss of token classification, and how far a model is from its teacher. B windows, L tokens, C classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.data.batches import Batch
from finetune.tasks.distillation import divergence
from finetune.tasks.token_classification.windows import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers.utils.generic import ModelOutput


def loss(outputs: ModelOutput, batch: Batch, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return (B,): the cross-entropy of each window, summed over its words, each times the weight of its class.

    `weights` are (C,); without them every word counts once.
    """
    from torch.nn import functional

    logits, labels = outputs["logits"].float().transpose(1, 2), batch["labels"]  # (B, C, L), (B, L)
    weights = None if weights is None else weights.to(logits.device)
    return functional.cross_entropy(logits, labels, weights, ignore_index=IGNORED, reduction="none").sum(1)


def distance(
    outputs: ModelOutput,
    teacher: ModelOutput,
    batch: Batch,
    temperature: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (B,): the divergence from the teacher's classes, summed over words, each times the weight of its class."""
    labels = batch["labels"]  # (B, L)
    counted = (labels != IGNORED).float()
    if weights is not None:
        counted = counted * weights.to(labels.device)[labels.clamp(min=0)]
    return (divergence(outputs["logits"], teacher["logits"], temperature) * counted).sum(1)


def items(batch: Batch, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return (B,): how many words of each window have a label, or the sum of the weights (C,) of their classes."""
    labels = batch["labels"]
    labelled: torch.Tensor = labels != IGNORED
    if weights is None:
        return labelled.sum(1)
    return (weights.to(labels.device)[labels.clamp(min=0)] * labelled).sum(1)
