"""Models and tokenizers from local folders."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    RobertaConfig,
)

from finetune.errors import UnsupportedError
from finetune.model import fingerprint, longest_window, refuse_attention
from finetune.tasks import load_task


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
    task = load_task("question_answering")
    for config in (AutoConfig.for_model("deberta"), AutoConfig.for_model("deberta-v2")):
        with pytest.raises(
            UnsupportedError, match=rf"sdpa for a {config.model_type}[\s\S]*fix: --attn_implementation auto"
        ):
            refuse_attention(config, task, "sdpa")
        refuse_attention(config, task, "eager")
        refuse_attention(config, task, "auto")
    for wanted in ("eager", "sdpa"):
        refuse_attention(BertConfig(), task, wanted)


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
