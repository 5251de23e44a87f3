"""PyTorch's fully sharded data parallelism (FSDP2), by way of accelerate: GPUs only."""

from typing import Any

from transformers import PreTrainedModel

from finetune.core.errors import Fault, UnsupportedError
from finetune.params.finetune import FinetuneParams

WITHOUT = "--apply_fsdp false"


def layers(model: PreTrainedModel) -> list[str]:
    """The classes of the layers that are sharded one by one. Embeddings are not: accelerate shards those alone."""
    return [name for name in model._no_split_modules or () if "Embed" not in name]


def arguments(model: PreTrainedModel) -> dict[str, Any]:
    """What the Trainer is told. Checkpoints hold whole weights."""
    config = {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": layers(model),
        "state_dict_type": "FULL_STATE_DICT",
    }
    return {"fsdp": True, "fsdp_config": config}


def refuse(params: FinetuneParams, model: PreTrainedModel) -> None:
    """Raises: UnsupportedError for a model that can't be sharded. It may be empty."""
    if not params.apply_fsdp:
        return
    kind = model.config.model_type
    if model.config.is_encoder_decoder:
        why = f"encoder and decoder of a {kind} share weights, which FSDP2 can't hold in two parts"
        raise UnsupportedError(Fault("--apply_fsdp true", why=why, fix=f"{WITHOUT}, or --apply_deepspeed true"))
    if not layers(model):
        why = f"transformers does not name the layers of a {kind}"
        raise UnsupportedError(Fault("--apply_fsdp true", why=why, fix=f"{WITHOUT}, or --apply_deepspeed true"))


def faults(params: FinetuneParams, processes: int) -> list[Fault]:
    """Why this machine or this launch can't do it."""
    import torch

    found = []
    if not torch.cuda.is_available():
        why = "no GPU is visible here, and on CPUs accelerate trains with DDP instead, without a word"
        found.append(Fault("--apply_fsdp true", why=why, fix=f"{WITHOUT}, or --apply_deepspeed true"))
    if processes == 1:
        why = "one process has nothing to shard the model with"
        found.append(Fault("--apply_fsdp true", why=why, fix=f"torchrun --nproc-per-node N, or {WITHOUT}"))
    if params.auto_find_batch_size:
        fix = "--auto_find_batch_size false"
        found.append(Fault("--auto_find_batch_size true with FSDP", why="it is not tried with it", fix=fix))
    if params.apply_lora and params.finetune_in_4bit:
        fix = "--finetune_in_4bit false"
        found.append(Fault("--finetune_in_4bit true with FSDP", why="it shards weights of 16 or 32 bits", fix=fix))
    return found
