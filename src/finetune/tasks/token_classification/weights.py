"""How much a word counts in the training loss, by how often its class occurs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.params.finetune import TokenClassificationParams
from finetune.params.provenance import Derived
from finetune.tasks.task import Objective
from finetune.tasks.token_classification.objective import distance, items, loss
from finetune.tasks.token_classification.windows import State

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


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


def class_counts(windows: Dataset, classes: int) -> Any:
    """Return (C,): the labelled words of each class in windows with a column `labels`."""
    counts = np.zeros(classes, dtype=np.int64)
    for chunk in windows.with_format("arrow")[:]["labels"].chunks:
        labels = chunk.flatten().to_numpy()
        counts += np.bincount(labels[labels >= 0], minlength=classes)
    return counts


def balanced(counts: Any) -> Any:
    """Return (C,): words / (classes x words of the class), of the classes that have words; 1 for the others."""
    there = counts > 0
    return np.where(there, counts.sum() / (there.sum() * np.maximum(counts, 1)), 1.0)
