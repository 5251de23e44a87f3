"""LoRA (Hu et al. 2021) and its kin: frozen weights plus trained products of two thin matrices."""

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.core.console import say, some
from finetune.core.errors import Fault, ModelError
from finetune.models.head import head_modules, head_parameters
from finetune.params.finetune import FinetuneParams

# model type -> the linear layers that get adapters: the projections of query and value, as in the paper; in DeBERTa,
# GPT-2 and ModernBERT, which have one for both, that of the key too
TARGETS = {
    "albert": ["query", "value"],
    "bart": ["q_proj", "v_proj"],
    "bert": ["query", "value"],
    "camembert": ["query", "value"],
    "deberta": ["in_proj"],
    "deberta-v2": ["query_proj", "value_proj"],
    "distilbert": ["q_lin", "v_lin"],
    "electra": ["query", "value"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
    "m2m_100": ["q_proj", "v_proj"],
    "marian": ["q_proj", "v_proj"],
    "mbart": ["q_proj", "v_proj"],
    "mistral": ["q_proj", "v_proj"],
    "modernbert": ["Wqkv"],
    "qwen2": ["q_proj", "v_proj"],
    "roberta": ["query", "value"],
    "t5": ["q", "v"],
    "xlm-roberta": ["query", "value"],
}
# dora: magnitudes apart (Liu et al. 2024); rslora: scaled by alpha / sqrt(r) (Kalajdzievski 2023)
KINDS: dict[str, dict[str, bool]] = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}


def wanted(params: FinetuneParams) -> bool:
    return params.apply_lora


def targets(model: PreTrainedModel) -> list[str]:
    """Return the layers that get adapters; in families that are not listed, all linear ones (Dettmers et al. 2023)."""
    listed = TARGETS.get(model.config.model_type)
    return list(listed) if listed else _linear_layers(model)


def _linear_layers(model: PreTrainedModel) -> list[str]:
    head = head_modules(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.partition(".")[0] not in head
    ]


def apply(model: PreTrainedModel, params: FinetuneParams) -> tuple[PreTrainedModel, list[str]]:
    """Freeze the model but for adapters and head. Return it, and the lines to print.

    Raises: ModelError if anything else is trained.
    """
    from peft import LoraConfig, get_peft_model

    layers, head, total = targets(model), head_parameters(model), model.num_parameters()
    said = []
    if model.config.model_type not in TARGETS:
        kinds = some(list(dict.fromkeys(layer.rpartition(".")[2] for layer in layers)))
        said.append(f"LoRA: no list for {model.config.model_type}, so adapters on all {len(layers)} layers: {kinds}")
    config = LoraConfig(
        r=params.lora_r,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        target_modules=layers,
        modules_to_save=head_modules(model),
        fan_in_fan_out=any(type(module) is Conv1D for module in model.modules()),
        **KINDS[params.lora_type],
    )
    adapted = get_peft_model(model, config)
    trained = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    adapters = {name for name in trained if ".lora_" in name}
    if {_plain(name) for name in trained.keys() - adapters} != set(head):
        why = f"besides adapters, {some(sorted(trained.keys() - adapters))}; the head is {some(head)}"
        raise ModelError(Fault("LoRA would not train the head, and the head alone", why=why))
    of_adapters, all_trained = sum(trained[name] for name in adapters), sum(trained.values())
    share = all_trained / (total + of_adapters)
    parts = f"{of_adapters:,} of adapters, {all_trained - of_adapters:,} of the head"
    said.append(f"LoRA: {all_trained:,} of {total + of_adapters:,} parameters are trained ({share:.2%}): {parts}")
    return adapted, said


def _plain(name: str) -> str:
    """Return the name that a weight of the head had before peft wrapped it."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Return the plain model, with the adapters merged."""
    idle = [name for name, p in model.named_parameters() if ".lora_B." in name and not p.any()]
    if idle:
        say(f"warning: {len(idle)} adapters have learnt nothing: {some(idle)}")
    merged: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator]
    return merged
