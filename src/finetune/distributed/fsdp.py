"""PyTorch's fully sharded data parallelism (FSDP2), by way of accelerate, on GPUs only."""

from transformers import PreTrainedModel

from finetune.core.types import Json


def layers(model: PreTrainedModel) -> list[str]:
    """Return the classes of the layers that are sharded one by one; accelerate shards embeddings by itself."""
    return [name for name in model._no_split_modules or () if "Embed" not in name]


def arguments(model: PreTrainedModel) -> Json:
    """Return what the Trainer is told. Its checkpoints hold weights that are not sharded."""
    config = {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": layers(model),
        "state_dict_type": "FULL_STATE_DICT",
    }
    return {"fsdp": True, "fsdp_config": config}
