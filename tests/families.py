"""Tiny random models of every family, as pretraining leaves them, each with a tokenizer of its own kind."""

import io
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer, SentencePieceBPETokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForSeq2SeqLM

from tests.conftest import build_wordpiece, sample_texts

PRETRAINED = (AutoModelForPreTraining, AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 160,
}  # fmt: skip
RELATIVE = {
    **SIZES, "max_position_embeddings": 160, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
ROBERTA = {**SIZES, "max_position_embeddings": 162, "type_vocab_size": 1}
DECODER = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 160}
# family -> (config class, kind of tokenizer, its class, values of the config)
FAMILIES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "albert": ("AlbertConfig", "unigram", "AlbertTokenizer", {**SIZES, "embedding_size": 16}),
    "bert": ("BertConfig", "wordpiece", "BertTokenizer", {**SIZES, "max_position_embeddings": 160}),
    "roberta": ("RobertaConfig", "bytes", "RobertaTokenizer", ROBERTA),
    "deberta": (
        "DebertaConfig",
        "bytes",
        "DebertaTokenizer",
        RELATIVE,
    ),
    "deberta-v2": (
        "DebertaV2Config",
        "unigram",
        "DebertaV2Tokenizer",
        {**RELATIVE, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    "deberta-v3": (
        "DebertaV2Config",
        "unigram",
        "DebertaV2Tokenizer",
        {**RELATIVE, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    ),
    "distilbert": (
        "DistilBertConfig",
        "wordpiece",
        "DistilBertTokenizer",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 160},
    ),
    "electra": ("ElectraConfig", "wordpiece", "ElectraTokenizer", {**SIZES, "embedding_size": 16}),
    "llama": ("LlamaConfig", "bpe", "LlamaTokenizer", DECODER),
    "mistral": ("MistralConfig", "bpe", "LlamaTokenizer", DECODER),
    "qwen2": ("Qwen2Config", "bytes", "Qwen2Tokenizer", DECODER),
    "t5": (
        "T5Config",
        "unigram",
        "T5Tokenizer",
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "gpt2": ("GPT2Config", "bytes", "GPT2Tokenizer", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 160}),
    "camembert": ("CamembertConfig", "unigram", "CamembertTokenizer", ROBERTA),
    "modernbert": (
        "ModernBertConfig",
        "bytes",
        "PreTrainedTokenizerFast",
        {**SIZES, "max_position_embeddings": 160, "global_attn_every_n_layers": 2},
    ),
    "bart": ("BartConfig", "bytes", "BartTokenizer", SEQ2SEQ),
    "mbart": ("MBartConfig", "unigram", "MBartTokenizer", SEQ2SEQ),
    "xlm-roberta": ("XLMRobertaConfig", "unigram", "XLMRobertaTokenizer", ROBERTA),
}
# Not in the table of layers for LoRA, for which they are looked up in the model.
OTHERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "mpnet": ("MPNetConfig", "wordpiece", "MPNetTokenizer", {**SIZES, "max_position_embeddings": 162}),
    "gpt_neo": (
        "GPTNeoConfig",
        "bytes",
        "GPT2Tokenizer",
        {
            "hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 160,
        },
    ),
    "xlnet": ("XLNetConfig", "unigram", "XLNetTokenizer", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
}  # fmt: skip

# Besides those above, that write answers.
WRITING_DECODERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "gemma": ("GemmaConfig", "bpe", "LlamaTokenizer", {**DECODER, "head_dim": 16}),
    "gpt_neox": ("GPTNeoXConfig", "bytes", "GPT2Tokenizer", {**SIZES, "max_position_embeddings": 160}),
    "phi3": ("Phi3Config", "bpe", "LlamaTokenizer", DECODER),
    "qwen3": ("Qwen3Config", "bytes", "Qwen2Tokenizer", {**DECODER, "head_dim": 16}),
}


def build_family(family: str, folder: Path) -> Path:
    """A folder as the hub has it: the model with the head that it was pretrained with, and the tokenizer."""
    config_class, kind, tokenizer_class, values = {**FAMILIES, **OTHERS, **WRITING_DECODERS}[family]
    tokenizer = TOKENIZERS[kind](getattr(transformers, tokenizer_class), folder)
    tokenizer.save_pretrained(folder)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = {"pad_token_id": pad, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, config_class)(vocab_size=len(tokenizer), **values, **ids)
    torch.manual_seed(0)
    pretrained = next(kind for kind in PRETRAINED if type(config) in kind._model_mapping)
    pretrained.from_config(config).save_pretrained(folder)
    return folder


def wordpiece(cls: Any, folder: Path) -> Any:
    build_wordpiece(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@cache
def _byte_level() -> dict[str, Any]:
    made = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    made.train_from_iterator(sample_texts(), vocab_size=1500, special_tokens=special, show_progress=False)
    model: dict[str, Any] = json.loads(made.to_str())["model"]
    return model


def byte_level(cls: Any, folder: Path) -> Any:
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in _byte_level()["merges"]]
    if cls is transformers.PreTrainedTokenizerFast:
        plain = transformers.RobertaTokenizer(vocab=_byte_level()["vocab"], merges=merges)
        names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        return cls(tokenizer_object=plain.backend_tokenizer, **names)
    return cls(vocab=_byte_level()["vocab"], merges=merges)


@cache
def _bpe() -> dict[str, Any]:
    made = SentencePieceBPETokenizer(unk_token="<unk>")
    special = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(sample_texts(), vocab_size=1500, special_tokens=special, show_progress=False)
    model: dict[str, Any] = json.loads(made.to_str())["model"]
    return model


def bpe(cls: Any, folder: Path) -> Any:
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in _bpe()["merges"]]
    return cls(vocab=_bpe()["vocab"], merges=merges, add_bos_token=True)


def unigram_pieces(texts: Iterable[str], vocab_size: int) -> list[tuple[str, float]]:
    """Pieces and their log-probabilities, by sentencepiece: the trainer of tokenizers finds others in each process."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size, hard_vocab_limit=False,
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    words = [i for i in range(made.get_piece_size()) if not made.is_control(i) and not made.is_unknown(i)]
    return [(made.id_to_piece(i), made.get_score(i)) for i in words]


@cache
def _unigram() -> list[tuple[str, float]]:
    return unigram_pieces(sample_texts(), 1500)


def unigram(cls: Any, folder: Path) -> Any:
    special = {
        "AlbertTokenizer": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        "T5Tokenizer": ["<pad>", "</s>", "<unk>"],
        "DebertaV2Tokenizer": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    }.get(cls.__name__, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    languages = {"src_lang": "en_XX", "tgt_lang": "de_DE"} if cls.__name__ == "MBartTokenizer" else {}
    return cls(vocab=[*((name, 0.0) for name in special), *_unigram()], **languages)


TOKENIZERS = {"wordpiece": wordpiece, "bytes": byte_level, "bpe": bpe, "unigram": unigram}
