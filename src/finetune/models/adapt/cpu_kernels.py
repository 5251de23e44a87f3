"""Training on a CPU with the attention and the dropout of models/kernels, for the families that are proved to be right.

The model that is saved knows nothing of them: they hold no weights, and what computes attention isn't stored.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from finetune.models.kernels import attention, families
from finetune.models.kernels.dropout import Dropout
from finetune.params.finetune import EncoderParams, FinetuneParams


def wanted(params: FinetuneParams) -> bool:
    """Return whether the run trains on a CPU, and neither an attention nor torch.compile's kernels were asked for."""
    asked = isinstance(params, EncoderParams) and params.cpu_kernels
    return asked and params.attn_implementation == "auto" and not params.torch_compile and not torch.cuda.is_available()


def apply(model: PreTrainedModel, params: FinetuneParams) -> tuple[PreTrainedModel, list[str]]:
    """Return the model, with the kernels where its family is known, and no lines: arguments.derived has one."""
    if not families.is_known(model.config) or model.config._attn_implementation != "sdpa":
        return model, []
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout and not module.inplace:
            model.set_submodule(name, Dropout(module.p).train(module.training))
    model.set_attn_implementation(attention.NAME)
    return model, []


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with PyTorch's own attention and dropout."""
    for name, module in list(model.named_modules()):
        if type(module) is Dropout:
            model.set_submodule(name, nn.Dropout(module.p).train(module.training))
    if model.config._attn_implementation == attention.NAME:
        model.set_attn_implementation("sdpa")
    return model
