"""The loss of token classification, how much each word counts in it, and how far a model is from its teacher.

B windows, L tokens, C classes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from finetune.data.batches import Batch
from finetune.params.finetune import TokenClassificationParams
from finetune.params.provenance import Derived
from finetune.tasks.distillation import divergence
from finetune.tasks.task import Objective
from finetune.tasks.token_classification.windows import IGNORED, State

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from numpy.typing import NDArray
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


def objective(weights: torch.Tensor | None = None) -> Objective:
    """Return the mean loss over words; with `weights` (C,) of classes, that of torch.nn.CrossEntropyLoss(weights)."""
    return Objective(
        labels=frozenset({"labels"}),
        loss=partial(loss, weights=weights),
        items=partial(items, weights=weights),
        distance=partial(distance, weights=weights),
    )


def weigh(params: TokenClassificationParams, state: State, windows: Dataset) -> tuple[Objective, list[Derived]]:
    """Return the objective of training, and the weights in it, if there are any."""
    import torch

    if params.class_weights == "none":
        return objective(), []
    counts = class_counts(windows, len(state.labels))
    weights = balanced(counts)
    if params.class_weights == "sqrt":
        weights = np.sqrt(weights)
    shown = {name: float(f"{weight:.6g}") for name, weight in zip(state.labels, weights, strict=True)}
    reason = f"{params.class_weights}, of {counts.sum():,} words of {np.count_nonzero(counts)} classes"
    return objective(torch.from_numpy(weights).float()), [Derived("class_weights", shown, reason)]


def class_counts(windows: Dataset, classes: int) -> NDArray[np.int64]:
    """Return (C,): the labelled words of each class in windows with a column `labels`."""
    counts = np.zeros(classes, dtype=np.int64)
    for chunk in windows.with_format("arrow")[:]["labels"].chunks:
        labels = chunk.flatten().to_numpy()
        counts += np.bincount(labels[labels >= 0], minlength=classes)
    return counts


def balanced(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (C,): words / (classes x words of the class), of the classes that have words; 1 for the others."""
    there = counts > 0
    return np.where(there, counts.sum() / (there.sum() * np.maximum(counts, 1)), 1.0)
