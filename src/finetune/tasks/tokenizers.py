"""The text or token that tokenizers need before a word and behind a window."""

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast


def set_space_before_words(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let GPT-2's and RoBERTa's tokenizers read each word of a list as they read it inside a text."""
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(pre_tokenizer, pre_tokenizers.ByteLevel):
        pre_tokenizer.add_prefix_space = True
        tokenizer.add_prefix_space = True  # it is saved with this


def before_words(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return what has to stand before each word of a list: a space for Llama 3's and Qwen's tokenizers.

    They cut a word into pieces before ByteLevel, which would put its space before every piece.
    """
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    is_sequence = isinstance(pre_tokenizer, pre_tokenizers.Sequence)
    parts = iter(pre_tokenizer) if is_sequence else ()
    return " " if any(isinstance(part, pre_tokenizers.ByteLevel) for part in parts) else ""


def closing_token(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return what is put behind a window in which the tokenizer puts no class token, and no other behind the context.

    Those are the tokenizers of decoders (GPT-2, Llama, Mistral, Qwen2), whose tokens see only what stands before them:
    at the first one, where others predict "no answer", nothing of the context could be known. What is put behind
    changes nothing before it.
    """
    probe = tokenizer("a", "a")
    if tokenizer.cls_token_id in probe["input_ids"] or probe.sequence_ids(0)[-1] is None:
        return []
    return [tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id]
