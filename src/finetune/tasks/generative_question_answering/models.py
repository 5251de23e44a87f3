"""The models that write an answer: encoder-decoders, and the decoders that have been tried."""

from collections import ChainMap
from typing import TYPE_CHECKING, Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)

if TYPE_CHECKING:
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

# transformers' table of causal language models has encoders too, as BERT, which would have to learn to write.
DECODERS = ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "phi3", "qwen2", "qwen3")
FAMILIES = ChainMap[Any, Any](
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    {CONFIG_MAPPING[name]: MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]] for name in DECODERS},
)


def auto_model(config: PreTrainedConfig) -> "type[_BaseAutoModelClass]":
    """Return the auto class that loads such a model."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
