"""Gradient checkpointing (Chen et al. 2016): keep a layer's input alone, and compute the layer again going backward."""

from typing import Any

from finetune.core.errors import Fault, UnsupportedError
from finetune.params.finetune import FinetuneParams


def wanted(params: FinetuneParams) -> bool:
    return params.gradient_checkpointing


def refuse(params: FinetuneParams, model: Any) -> None:
    """Raises: UnsupportedError if transformers has not marked the layers of this family."""
    if params.gradient_checkpointing and not model.supports_gradient_checkpointing:
        why = f"transformers can't compute the layers of {type(model).__name__} again"
        raise UnsupportedError(Fault("--gradient_checkpointing true", why=why, fix="--gradient_checkpointing false"))


def apply(model: Any, params: FinetuneParams) -> tuple[Any, list[str]]:
    """Let each layer of the model be computed twice."""
    # Its new name, activation_checkpointing_enable, isn't in all of transformers 5.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, []


def restore(model: Any) -> Any:
    """Nothing to undo: it has an effect in training alone, and is no part of what is saved."""
    return model
