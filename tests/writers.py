"""Tiny random models of families that write, each with its own kind of tokenizer, and the translation sample."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from tokenizers import SentencePieceBPETokenizer
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from finetune.data.batches import Batch
from finetune.tasks.generation.writing import WritingState
from tests.conftest import sample_rows
from tests.families import FAMILIES, SEQ2SEQ, WRITING_DECODERS, byte_level, unigram_pieces

T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
# family -> (config class, its values, the codes of English and German)
WRITERS: dict[str, tuple[str, dict[str, Any], tuple[str, str]]] = {
    "t5": ("T5Config", T5, ("en", "de")),
    "byt5": ("T5Config", T5, ("en", "de")),
    "bart": ("BartConfig", SEQ2SEQ, ("en", "de")),
    "marian": ("MarianConfig", SEQ2SEQ, ("en", "de")),
    "mbart": ("MBartConfig", SEQ2SEQ, ("en_XX", "de_DE")),
    "mbart50": ("MBartConfig", {**SEQ2SEQ, "decoder_start_token_id": 2}, ("en_XX", "de_DE")),
    "m2m_100": ("M2M100Config", {**SEQ2SEQ, "decoder_start_token_id": 2}, ("en", "de")),
    "nllb": ("M2M100Config", {**SEQ2SEQ, "decoder_start_token_id": 2}, ("eng_Latn", "deu_Latn")),
}


def pairs(split: str = "train") -> list[dict[str, str]]:
    return sample_rows(split, "translation")


@cache
def texts() -> list[str]:
    return [text for row in pairs()[:1000] for text in row.values()]


def build_writer(family: str, folder: Path, **config: Any) -> Path:
    """A folder as the hub has it, without dropout."""
    config_class, values, _ = WRITERS[family]
    tokenizer = TOKENIZERS[family](folder)
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "marian":
        ids["decoder_start_token_id"] = tokenizer.pad_token_id
    rate = "dropout_rate" if config_class == "T5Config" else "dropout"
    size = max([*tokenizer.get_vocab().values(), *vars(tokenizer).get("lang_code_to_id", {}).values()]) + 1
    sizes = {"vocab_size": max(size, len(tokenizer))}
    made = getattr(transformers, config_class)(**{**sizes, **values, **ids, rate: 0.0, **config})
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(made).save_pretrained(folder)
    return folder


@cache
def _unigram() -> list[tuple[str, float]]:
    return unigram_pieces(texts(), 400)


def _t5(_folder: Path) -> Any:
    special = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
    return transformers.T5Tokenizer(vocab=[*special, *_unigram()], extra_ids=4)


def _bart(folder: Path) -> Any:
    return byte_level(transformers.BartTokenizer, folder)


def _multilingual(name: str) -> Callable[[Path], Any]:
    def make(_folder: Path) -> Any:
        special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
        return getattr(transformers, name)(vocab=[*special, *_unigram()])

    return make


def _nllb(_folder: Path) -> Any:
    made = SentencePieceBPETokenizer(unk_token="<unk>")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made.train_from_iterator(texts(), vocab_size=400, special_tokens=special, show_progress=False)
    model = json.loads(made.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    return transformers.NllbTokenizer(vocab=model["vocab"], merges=merges)


def _pieces(folder: Path) -> sentencepiece.SentencePieceProcessor:
    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_prefix=str(folder / "pieces"), vocab_size=300, minloglevel=2
    )
    (folder / "pieces.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))


def _vocabulary(folder: Path, first: list[str], last: list[str]) -> Path:
    model = _pieces(folder)
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    known = [*first, *(piece for piece in pieces if piece not in {*first, *last}), *last]
    (folder / "made.json").write_text(json.dumps({piece: i for i, piece in enumerate(known)}), encoding="utf-8")
    return folder / "made.json"


def _marian(folder: Path) -> Any:
    vocabulary = _vocabulary(folder, ["</s>", "<unk>"], ["<pad>"])
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes((folder / "pieces.model").read_bytes())
    made = transformers.MarianTokenizer(
        vocab=str(vocabulary), source_spm=str(folder / "source.spm"), target_spm=str(folder / "target.spm")
    )
    return _without_parts(folder, made)


def _m2m_100(folder: Path) -> Any:
    vocabulary = _vocabulary(folder, ["<s>", "<pad>", "</s>", "<unk>"], [])
    made = transformers.M2M100Tokenizer(vocab_file=str(vocabulary), spm_file=str(folder / "pieces.model"))
    return _without_parts(folder, made)


def _without_parts(folder: Path, made: Any) -> Any:
    made.save_pretrained(folder)
    for name in ("pieces.model", "made.json"):
        (folder / name).unlink()
    return transformers.AutoTokenizer.from_pretrained(folder)


def _byt5(_folder: Path) -> Any:
    return transformers.ByT5Tokenizer()


TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    "t5": _t5,
    "byt5": _byt5,
    "bart": _bart,
    "marian": _marian,
    "mbart": _multilingual("MBartTokenizer"),
    "mbart50": _multilingual("MBart50Tokenizer"),
    "m2m_100": _m2m_100,
    "nllb": _nllb,
}


WORDS, PADDING, END = 500, 0, 1


def random_writer(family: str, **config: Any) -> Any:
    """A tiny model that writes, of random weights that are larger than those of pretraining: each text differs."""
    if family in WRITERS:
        kind, values, _ = WRITERS[family]
    else:
        kind, _, _, values = {**FAMILIES, **WRITING_DECODERS}[family]
    given: dict[str, Any] = {"vocab_size": WORDS, "pad_token_id": PADDING, "eos_token_id": END}
    given |= {"initializer_factor": 3.0} if kind == "T5Config" else {"initializer_range": 0.2, "init_std": 0.2}
    torch.manual_seed(0)
    made = getattr(transformers, kind)(**{**given, **values, **config})
    kind_of = AutoModelForSeq2SeqLM if made.is_encoder_decoder else AutoModelForCausalLM
    return kind_of.from_config(made).eval()


def sources(texts: int, tokens: int) -> Batch:
    """Random texts, each but the first shorter than the one before, and padded; as a model that writes is asked by."""
    ids = torch.randint(5, WORDS, (texts, tokens), generator=torch.Generator().manual_seed(tokens))
    lengths = torch.tensor([max(1, tokens - i * tokens // (texts + 1)) for i in range(texts)])
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    ids = ids.where(mask == 1, PADDING)
    return {"input_ids": ids, "attention_mask": mask, "row": torch.arange(texts), "prompt_tokens": lengths}


def how_to_write(model: Any, beams: int, most: int = 12, forced: int | None = None) -> WritingState:
    return WritingState(
        max_seq_length=64,
        pad_to_max_length=False,
        max_target_length=most,
        num_beams=beams,
        decoder_start_token_id=PADDING if model.config.is_encoder_decoder else None,
        forced_bos_token_id=forced,
    )
