"""Which models are converted: those whose logits in each runtime are compared with PyTorch's in a test."""

from transformers import PreTrainedConfig

from finetune.core.errors import Fault, UnsupportedError

READERS = ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
WRITERS = (
    "bart", "gemma", "gpt2", "gpt_neox", "llama", "m2m_100", "marian", "mbart", "mistral", "phi3", "qwen2", "qwen3",
    "t5",
)  # fmt: skip
OF_LENGTH = ("dynamic", "longrope")  # kinds of rotary positions that a graph would hold for one length


def refuse_others(config: PreTrainedConfig, writes: bool) -> None:
    """Raise UnsupportedError for a family that is not converted."""
    allowed, kind = (WRITERS if writes else READERS), config.model_type
    if kind not in allowed:
        why = "its conversion is not compared with PyTorch in a test"
        fix = f"finetune one of {', '.join(allowed)}; or use the model in PyTorch, as it is"
        raise UnsupportedError(Fault(f"finetune export of a {kind}", why=why, fix=fix))
    rotary = (config.to_dict().get("rope_parameters") or {}).get("rope_type")
    if rotary in OF_LENGTH:
        why = f"its positions depend on how long a text is (rope_type {rotary}), which a graph can't"
        raise UnsupportedError(Fault(f"finetune export of this {kind}", why=why, fix="use it in PyTorch, as it is"))
