"""The loss of what is written: cross-entropy over the tokens of the target."""

import torch
from torch.nn.functional import cross_entropy
from transformers.utils.generic import ModelOutput

from finetune.data.batches import Batch
from finetune.tasks.task import Objective

IGNORED = -100  # label of what fills a target up


def loss(outputs: ModelOutput, batch: Batch, smoothing: float = 0.0) -> torch.Tensor:
    """Return (B,) fp32: the loss of each target, summed over its tokens; of logits (B, T, V) and labels (B, T).

    With `smoothing` e, the target of a token is 1 - e of its own and e spread evenly over the V (Szegedy et al. 2016).
    """
    logits, labels = outputs["logits"], batch["labels"]
    each = cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    return each.view(labels.shape).sum(1)


def items(batch: Batch) -> torch.Tensor:
    """Return (B,): the tokens of each target."""
    return (batch["labels"] != IGNORED).sum(1).float()


def objective(smoothing: float = 0.0) -> Objective:
    """Return the mean loss over the tokens of targets."""
    smoothed = loss if not smoothing else lambda outputs, batch: loss(outputs, batch, smoothing)
    return Objective(labels=frozenset({"labels"}), loss=smoothed, items=items)
