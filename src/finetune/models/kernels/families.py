"""The models whose attention these kernels compute."""

from transformers import PreTrainedConfig

# Model types whose attention is softmax(Q K^T) V by transformers' interface, with one mask for all tokens of a window.
# Each is proved by tests/models/kernels/test_families.py. DeBERTa and MPNet have positions in their attention,
# ModernBERT has layers that look at near tokens alone.
FAMILIES = frozenset({"albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})


def is_known(config: PreTrainedConfig) -> bool:
    """Return whether a model of this config is one of them; no decoder is, whose tokens see only those before."""
    return config.model_type in FAMILIES and not config.to_dict().get("is_decoder", False)
