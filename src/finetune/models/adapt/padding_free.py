"""Training without padding, for the families that are proved to be right; models/kernels/padding_free.py computes it.

The model that is saved knows nothing of it: it has no weights, and what computes attention isn't stored.
"""

import torch
from transformers import PreTrainedModel

from finetune.core.launch import world_size
from finetune.models.kernels import compiled, families, padding_free
from finetune.models.kernels.cuda_graphs import CudaGraphs
from finetune.params.finetune import EncoderParams, FinetuneParams


def wanted(params: FinetuneParams) -> bool:
    """Return whether batches are to have no padding, and nothing was asked for that needs it."""
    if not isinstance(params, EncoderParams) or params.attn_implementation != "auto":
        return False
    if params.apply_ort or (params.torch_compile and not may_compile_layers(params)):
        return False
    gains = torch.cuda.is_available() and params.precision != "32"  # by FlashAttention
    return params.padding_free == "always" or (params.padding_free == "auto" and gains)


def may_compile_layers(params: FinetuneParams) -> bool:
    """Return whether layers may be compiled one by one, which isn't tried with what changes how a layer is called."""
    called_otherwise = params.apply_lora or params.apply_fsdp or params.gradient_checkpointing
    always = isinstance(params, EncoderParams) and params.padding_free == "always"
    return params.torch_compile and not called_otherwise and not always


def compiles_whole_model(model: PreTrainedModel, params: FinetuneParams) -> bool:
    """Return whether the Trainer is to compile the model: its layers haven't been, one by one."""
    return params.torch_compile and model.config._attn_implementation != padding_free.NAME


def apply(model: PreTrainedModel, params: FinetuneParams) -> tuple[PreTrainedModel, list[str]]:
    """Return the model, whose attention knows where windows begin, and a line where something isn't as it might be."""
    if not families.is_known(model.config):
        return model, [f"padding_free: not for this model ({model.config.model_type}); its batches are padded"]
    why = _why_no_flash(model, params.precision) if torch.cuda.is_available() else ""
    always = isinstance(params, EncoderParams) and params.padding_free == "always"
    if not why or always:
        model.set_attn_implementation(padding_free.NAME)
    if not why and params.torch_compile:
        compiled.compile_layers(model)
        return model, ["torch_compile: layers are compiled one by one, for training steps without padding"]
    padded = "attention is" if always else "batches are"
    return model, [f"padding_free: FlashAttention can't be used ({why}); {padded} padded"] if why else []


def _why_no_flash(model: PreTrainedModel, precision: str) -> str:
    if precision == "32":
        return "it computes in 16 bits"
    size = model.config.hidden_size // model.config.num_attention_heads
    return padding_free.why_no_flash(torch.float16 if precision == "16" else torch.bfloat16, size)


def cuda_graphs_of(model: PreTrainedModel, params: FinetuneParams, longest: int) -> tuple[CudaGraphs | None, list[str]]:
    """Return what computes training steps by CUDA graphs, and the line to print; `longest` are a window's tokens.

    None where that isn't asked for, or can't be done here.
    """
    if not isinstance(params, EncoderParams) or not params.cuda_graphs:
        return None, []
    if not torch.cuda.is_available():
        why = "there is no GPU"
    elif world_size() > 1:
        why = "for one process alone"
    elif model.config._attn_implementation != padding_free.NAME:
        why = "its batches are padded"
    else:
        why = _why_no_flash(model, params.precision)
    if why:
        return None, [f"cuda_graphs: not used ({why})"]
    return CudaGraphs(model, longest), ["cuda_graphs: passes are recorded, and compared with the model's"]


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with PyTorch's own attention."""
    if model.config._attn_implementation == padding_free.NAME:
        model.set_attn_implementation("sdpa")
    compiled.restore(model)
    return model
