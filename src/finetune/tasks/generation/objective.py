"""The loss of what is written: cross-entropy over the tokens of the target."""

import torch
from torch.nn.functional import cross_entropy
from transformers.utils.generic import ModelOutput

from finetune.data.batches import Batch
from finetune.params.finetune import LabelSmoothing
from finetune.params.provenance import Derived
from finetune.tasks.distillation import divergence
from finetune.tasks.task import Objective, State

IGNORED = -100  # label of what fills a target up


def loss(outputs: ModelOutput, batch: Batch, smoothing: float = 0.0) -> torch.Tensor:
    """Return (B,) fp32: the loss of each target, summed over its tokens; of logits (B, T, V) and labels (B, T).

    With `smoothing` e, the target of a token is 1 - e of its own and e spread evenly over the V (Szegedy et al. 2016).
    """
    logits, labels = outputs["logits"], batch["labels"]
    kept = labels != IGNORED  # in a decoder, few: nothing else is computed in 32 bits
    found = cross_entropy(logits[kept].float(), labels[kept], reduction="none", label_smoothing=smoothing)
    return torch.zeros(labels.shape, device=found.device).masked_scatter(kept, found).sum(1)


def items(batch: Batch) -> torch.Tensor:
    """Return (B,): the tokens of each target."""
    return (batch["labels"] != IGNORED).sum(1).float()


def distance(outputs: ModelOutput, teacher: ModelOutput, batch: Batch, temperature: float) -> torch.Tensor:
    """Return (B,) fp32: the divergence from the teacher's next tokens, summed over the tokens of each target."""
    kept = batch["labels"] != IGNORED
    found = divergence(outputs["logits"][kept], teacher["logits"][kept], temperature)
    return torch.zeros(kept.shape, device=found.device).masked_scatter(kept, found).sum(1)


def objective(smoothing: float = 0.0) -> Objective:
    """Return the mean loss over the tokens of targets."""
    smoothed = loss if not smoothing else lambda outputs, batch: loss(outputs, batch, smoothing)
    return Objective(labels=frozenset({"labels"}), loss=smoothed, items=items, distance=distance)


def weigh(params: LabelSmoothing, _state: State, _windows: object) -> tuple[Objective, list[Derived]]:
    """Return the objective of training."""
    return objective(params.label_smoothing_factor), []
