"""QLoRA (Dettmers et al. 2023): frozen weights in 4 bits while adapters are trained on them.

NormalFloat with doubly quantised constants, by bitsandbytes. The weights as they were imported stay in the memory of
the machine, and the adapters are merged into those: what is lost in 4 bits is not lost in the saved model.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.core.types import Json
from finetune.params.finetune import FinetuneParams

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit

COMPUTED_IN = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


def wanted(params: FinetuneParams) -> bool:
    return params.apply_lora and params.finetune_in_4bit


def frozen_layers(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Yield the name and the layer of the linear layers that are not trained, those under adapters among them.

    Layers whose type the model's code asks for (T5's `wo`), which transformers keeps in 32 bits too, are left out.
    """
    kept = {"original_module", *(model._keep_in_fp32_modules or ())}
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, Conv1D) and not module.weight.requires_grad and not kept & {*name.split(".")}:
            yield name, module


def apply(model: PreTrainedModel, params: FinetuneParams) -> tuple[PreTrainedModel, list[str]]:
    """Return the model, whose layers are quantised when it moves to its device, and the lines to print."""
    saved = 0
    for name, layer in list(frozen_layers(model)):
        model.set_submodule(name, _packed(layer, COMPUTED_IN[params.precision]))
        saved += layer.weight.numel()
    return model, [f"4 bits: {saved:,} frozen weights; the saved model has them as they were imported"]


def _packed(layer: nn.Linear | Conv1D, computed_in: torch.dtype) -> "Linear4bit":
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = layer.weight.T.contiguous() if isinstance(layer, Conv1D) else layer.weight
    outputs, inputs = weight.shape
    how: Json = {"quant_type": "nf4", "compress_statistics": True}
    packed = Linear4bit(inputs, outputs, bias=False, compute_dtype=computed_in, device="meta", **how)
    packed.weight = Params4bit(weight.detach().clone(), requires_grad=False, module=packed, **how)
    if layer.bias is not None:
        packed.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)  # moving it will change its type
    packed.imported = [layer]  # in a list, or it would be a part of the model
    return packed


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with the weights as they were imported."""
    for name, module in list(model.named_modules()):
        if "imported" in vars(module):
            model.set_submodule(name, module.imported[0].to(module.weight.device))
    return model
