"""Training without padding, for the families that are proved to be right; models/kernels/padding_free.py computes it.

The model that is saved knows nothing of it: it has no weights, and what computes attention isn't stored.
"""

import torch
from transformers import PreTrainedModel

from finetune.models.kernels import families, padding_free
from finetune.params.finetune import EncoderParams, FinetuneParams


def wanted(params: FinetuneParams) -> bool:
    """Return whether batches are to have no padding, and nothing was asked for that needs it."""
    if not isinstance(params, EncoderParams) or params.attn_implementation != "auto":
        return False
    if params.torch_compile or params.apply_ort:
        return False
    return params.padding_free == "always" or (params.padding_free == "auto" and torch.cuda.is_available())


def apply(model: PreTrainedModel, params: FinetuneParams) -> tuple[PreTrainedModel, list[str]]:
    """Return the model, whose attention knows where windows begin, and a line where something isn't as it might be."""
    if not families.is_known(model.config):
        return model, [f"padding_free: not for this model ({model.config.model_type}); its batches are padded"]
    model.set_attn_implementation(padding_free.NAME)
    if params.precision == "32" or not torch.cuda.is_available():
        return model, []
    why = padding_free.why_no_flash(torch.float16 if params.precision == "16" else torch.bfloat16)
    return model, [f"padding_free: attention is padded, without FlashAttention: {why}"] if why else []


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with PyTorch's own attention."""
    if model.config._attn_implementation == padding_free.NAME:
        model.set_attn_implementation("sdpa")
    return model
