"""Which models are converted for other runtimes: those that a test compares with PyTorch there, in each runtime."""

from transformers import PreTrainedConfig

READERS = ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
WRITERS = (
    "bart", "gemma", "gpt2", "gpt_neox", "llama", "m2m_100", "marian", "mbart", "mistral", "phi3", "qwen2", "qwen3",
    "t5",
)  # fmt: skip
OF_LENGTH = ("dynamic", "longrope")  # kinds of rotary positions that a graph would hold for one length


def why_not(config: PreTrainedConfig, writes: bool) -> str:
    """Return why a model isn't converted, "" if it is. `writes` is whether its task has it write its answer."""
    families = WRITERS if writes else READERS
    if config.model_type not in families:
        return f"conversions are compared with PyTorch for {', '.join(families)} alone"
    rotary = (config.to_dict().get("rope_parameters") or {}).get("rope_type")
    if rotary in OF_LENGTH:
        return f"its positions depend on how long a text is (rope_type {rotary}), which a graph can't express"
    return ""
