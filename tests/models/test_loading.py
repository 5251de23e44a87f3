"""Models and tokenizers from local folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    RobertaConfig,
)

from finetune.core.errors import UnsupportedError
from finetune.models.facts import facts_of
from finetune.models.loading import empty_model, load_model
from finetune.models.stored.tokenizers import load_tokenizer, longest_window
from finetune.params.case import Case
from finetune.params.rules import errors
from finetune.tasks import load_task
from finetune.tasks.token_classification import windows as tc_windows
from finetune.training.resume import fingerprint
from tests.conftest import build_wordpiece
from tests.families import build_family
from tests.params.test_rules import finetune_params
from tests.tasks.token_classification.conftest import state as tc_state

QUESTIONS, TAGS = load_task("question_answering"), load_task("token_classification")


def test_longest_window(tiny_model: Path) -> None:
    unlimited = AutoTokenizer.from_pretrained(tiny_model)
    assert unlimited.model_max_length >= 1e30
    limited = AutoTokenizer.from_pretrained(tiny_model, model_max_length=100)
    bert = BertConfig(max_position_embeddings=160)
    assert longest_window(bert, unlimited) == 160
    assert longest_window(bert, limited) == 100
    assert longest_window(BertConfig(max_position_embeddings=64), limited) == 64
    assert longest_window(RobertaConfig(max_position_embeddings=514), unlimited) == 512
    t5 = AutoConfig.for_model("t5")
    assert longest_window(t5, unlimited) == 512
    assert longest_window(t5, limited) == 100


@pytest.mark.parametrize(
    "family",
    [
        "bert", "distilbert", "electra", "albert", "roberta", "camembert", "xlm-roberta", "mpnet",
        "data2vec-text", "ibert", "luke", "roberta-prelayernorm", "xmod",
    ],
)  # fmt: skip
def test_models_run_at_their_longest_window(family: str, tiny_model: Path) -> None:
    """A window of that length is in the position table, and one token more is not."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"embedding_size": 16, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "entity_vocab_size": 9}
    extra = {"languages": ["en_XX"], "default_language": "en_XX"} if family == "xmod" else {}
    config = AutoConfig.for_model(family, vocab_size=40, max_position_embeddings=20, **sizes, **extra)
    model = AutoModelForQuestionAnswering.from_config(config).eval()
    length = longest_window(config, AutoTokenizer.from_pretrained(tiny_model))
    assert model(input_ids=torch.full((1, length), 5)).start_logits.shape == (1, length)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, length + 1), 5))


def test_attention_that_a_family_lacks_is_refused() -> None:
    for config in (AutoConfig.for_model("deberta"), AutoConfig.for_model("deberta-v2")):
        with pytest.raises(
            UnsupportedError, match=rf"sdpa for a {config.model_type}[\s\S]*fix: --attn_implementation auto"
        ):
            empty_model(config, QUESTIONS, "sdpa")
        empty_model(config, QUESTIONS, "eager")
        empty_model(config, QUESTIONS, "auto")
    for wanted in ("eager", "sdpa"):
        empty_model(BertConfig(), QUESTIONS, wanted)


def test_fingerprint(tmp_path: Path) -> None:
    """Sees any change, or in files as large as weights one at their ends; whatever they are called."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(3 * 2**20))
    other.write_bytes(bytes(3 * 2**20))
    assert fingerprint([one]) == fingerprint([other])
    other.write_bytes(bytes(2**20) + b"x" + bytes(2**21 - 1))
    assert fingerprint([one]) != fingerprint([other]) and fingerprint([one], True) == fingerprint([other], True)
    other.write_bytes(bytes(3 * 2**20 - 1) + b"x")
    assert fingerprint([one], True) != fingerprint([other], True)
    assert fingerprint([one]) != fingerprint([other])
    other.write_bytes(bytes(3 * 2**20 + 1))
    assert fingerprint([one]) != fingerprint([other])


def test_space_before_words_from_the_first_load_on(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(build_family("roberta", tmp_path), TAGS)
    pieces = tokenizer([["the", "the"]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(pieces) == ["Ġthe", "Ġthe"]


def test_a_tokenizer_that_cuts_off_the_left(tmp_path: Path) -> None:
    folder = build_family("bert", tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))
    columns = tc_windows.encode([{"tokens": ["the"] * 60}], load_tokenizer(folder, TAGS), tc_state(max_seq_length=20))
    assert sorted(int(word) for found in columns["word"] for word in found if word >= 0) == list(range(60))


def test_padding_is_on_the_right(tmp_path: Path) -> None:
    """Whatever the tokenizer does: GPT-2 counts its positions from the left."""
    tokenizer = load_tokenizer(build_family("llama", tmp_path), QUESTIONS)
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    assert tokenizer.padding_side == "right" and tokenizer.pad_token == tokenizer.eos_token


def test_a_tokenizer_without_any_token_to_pad_with(tmp_path: Path) -> None:
    build_family("qwen2", tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert plain.backend_tokenizer.token_to_id("<|endoftext|>") is not None
    plain.pad_token = plain.eos_token = plain.unk_token = None
    plain.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, QUESTIONS)
    assert tokenizer.pad_token_id is not None


@pytest.mark.parametrize("task", [QUESTIONS, TAGS], ids=lambda task: task.name)
@pytest.mark.parametrize(
    ("family", "wanted"), [("bert", True), ("distilbert", False), ("roberta", False), ("bart", False)]
)
def test_token_types_are_left_to_models_that_have_them(task: Any, family: str, wanted: bool, tmp_path: Path) -> None:
    """BERT's tokenizer gives them to any model: DistilBERT takes none, and RoBERTa has but one."""
    build_family(family, tmp_path)
    build_wordpiece(tmp_path)
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path)("a", "b")
    tokenizer = load_tokenizer(tmp_path, task)
    assert ("token_type_ids" in tokenizer("a", "b")) == wanted
    tokenizer.save_pretrained(tmp_path / "alone")
    again = load_tokenizer(tmp_path / "alone", task)
    assert ("token_type_ids" in again("a", "b")) == wanted


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_deberta_v1_is_refused_in_16_bits(precision: str) -> None:
    def found(config: Any, precision: str) -> str:
        facts = facts_of(empty_model(config, load_task("question_answering")))
        return "".join(map(str, errors(Case(finetune_params(precision=precision), known_model=facts))))

    assert f"--precision {precision} for a deberta" in found(DebertaConfig(), precision)
    assert found(DebertaConfig(), "32") == found(DebertaV2Config(), precision) == ""


def test_deberta_v1_would_break_in_16_bits(tmp_path: Path) -> None:
    """If this passes no longer, transformers has mended it and the refusal can go."""
    model, _ = load_model(build_family("deberta", tmp_path), load_task("token_classification"), None)
    ids = torch.arange(20, 44).reshape(2, 12)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="without overflow"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
