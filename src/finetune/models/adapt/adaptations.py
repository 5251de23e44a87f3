"""The adaptations, in the order in which they are made; they are undone in reverse."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from finetune.models.adapt import cpu_kernels, fake_quantisation, four_bit, lora, padding_free, pruning
from finetune.params.finetune import FinetuneParams


class Adapted(NamedTuple):
    """An adapted model, and how to get the model to save back."""

    model: PreTrainedModel
    restore: Callable[[PreTrainedModel], PreTrainedModel]
    said: list[str]  # a line for each adaptation that has something to print


ORDER = (lora, four_bit, pruning, fake_quantisation, cpu_kernels, padding_free)


def adapt(model: PreTrainedModel, params: FinetuneParams) -> Adapted:
    """Apply every adaptation that is asked for."""
    undo: list[Callable[[PreTrainedModel], PreTrainedModel]] = []
    said: list[str] = []
    fake_quantisation.forget(model)
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


@contextmanager
def not_trained(apart: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let the optimizer of the weights not see these parameters."""
    for parameter in apart:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in apart:
            parameter.requires_grad_(True)


@contextmanager
def gradients_set_aside(apart: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let the gradient of the weights be clipped as if there were no others."""
    gradients = [parameter.grad for parameter in apart]
    for parameter in apart:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(apart, gradients, strict=True):
            parameter.grad = gradient
