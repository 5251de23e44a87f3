"""LoRA (Hu et al. 2021): frozen weights plus trained products of two thin matrices in the attention projections."""

from typing import Any

from finetune.console import say
from finetune.errors import Fault, ModelError, UnsupportedError
from finetune.model import head_modules
from finetune.params import FinetuneParams

# model type -> the linear layers that get adapters
TARGETS = {
    "albert": ["query", "value"],
    "bert": ["query", "value"],
    "camembert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "electra": ["query", "value"],
    "roberta": ["query", "value"],
    "xlm-roberta": ["query", "value"],
}


def wanted(params: FinetuneParams) -> bool:
    return params.apply_lora


def refuse(params: FinetuneParams, model_type: str) -> None:
    """Raises: UnsupportedError for a family without a proved list of layers."""
    if params.apply_lora and model_type not in TARGETS:
        why = f"the model is a {model_type}; LoRA is proved for {', '.join(TARGETS)}"
        raise UnsupportedError(Fault("--apply_lora true", why=why, fix="--apply_lora false"))


def apply(model: Any, params: FinetuneParams) -> Any:
    """Freeze the model but for adapters and head. Raises: ModelError if the head would stay frozen."""
    from peft import LoraConfig, get_peft_model

    head = head_modules(model)
    config = LoraConfig(
        r=params.lora_r,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        target_modules=TARGETS[model.config.model_type],
        modules_to_save=head,
    )
    adapted = get_peft_model(model, config)
    trainable = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    if not all(any(f"{module}." in name for name in trainable) for module in head):
        raise ModelError(Fault("LoRA would leave the head frozen at random", why=f"head: {', '.join(head)}"))
    total = sum(p.numel() for p in model.parameters())
    trained = sum(trainable.values())
    say(f"LoRA: {trained:,} of {total:,} parameters are trained ({trained / total:.2%}), the head among them")
    return adapted


def restore(model: Any) -> Any:
    """The plain model, adapters merged."""
    return model.merge_and_unload()
