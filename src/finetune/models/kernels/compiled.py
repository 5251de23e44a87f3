"""Layers that are compiled one by one, for training steps without padding.

The layers of a model are one program with other weights: torch.compile makes it once, for rows of any length, in less
time than a whole model. Its kernels do several steps at a time: bias, dropout, sum and layer norm read and write the
hidden states once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def compile_layers(model: PreTrainedModel) -> None:
    """Let each layer compute rows of tokens by compiled code; padded batches, as in evaluation, by its own."""
    for layer in layers(model):
        layer.forward = by_length(layer.forward)


def restore(model: PreTrainedModel) -> None:
    """Let each layer compute all batches by its own code."""
    for layer in layers(model):
        vars(layer).pop("forward", None)


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the members of its lists of modules that have no such list themselves. (ALBERT's are in groups.)"""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    members = [member for modules in lists for member in modules]
    return [member for member in members if not any(isinstance(part, nn.ModuleList) for part in member.modules())]


def by_length(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes rows of tokens, of any length, by compiled code, and all else by `forward`."""
    compiled = torch.compile(forward, dynamic=True)

    def chosen(*inputs: Any, **given: Any) -> Any:
        return (forward if given.get("cu_seq_lens_q") is None else compiled)(*inputs, **given)

    return chosen
