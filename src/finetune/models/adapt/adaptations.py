"""The adaptations, in the order in which they are made; they are undone in reverse."""

from collections.abc import Callable
from typing import NamedTuple

from transformers import PreTrainedModel

from finetune.models.adapt import cpu_kernels, four_bit, lora, pruning
from finetune.params.finetune import FinetuneParams


class Adapted(NamedTuple):
    """An adapted model, and how to get the model to save back."""

    model: PreTrainedModel
    restore: Callable[[PreTrainedModel], PreTrainedModel]
    said: list[str]  # a line for each adaptation that has something to print


ORDER = (lora, four_bit, pruning, cpu_kernels)


def adapt(model: PreTrainedModel, params: FinetuneParams) -> Adapted:
    """Apply every adaptation that is asked for."""
    undo: list[Callable[[PreTrainedModel], PreTrainedModel]] = []
    said: list[str] = []
    for adaptation in ORDER:
        if adaptation.wanted(params):
            model, lines = adaptation.apply(model, params)
            undo.insert(0, adaptation.restore)
            said += lines

    def restore(adapted: PreTrainedModel) -> PreTrainedModel:
        for step in undo:
            adapted = step(adapted)
        return adapted

    return Adapted(model, restore, said)


# How layers are computed again (gradient checkpointing, Chen et al. 2016).
RECOMPUTE = {"use_reentrant": False}


def recompute(model: PreTrainedModel, params: FinetuneParams) -> None:
    """Let layers be computed again as the Trainer does, where a model is run without one."""
    if params.gradient_checkpointing:
        # Its new name, activation_checkpointing_enable, isn't in all of transformers 5.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=RECOMPUTE)
