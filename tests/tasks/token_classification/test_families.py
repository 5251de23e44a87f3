"""Every family through the command line: import, preprocess, train, save, reload, evaluate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForQuestionAnswering,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Qwen2Tokenizer,
)

from finetune import evaluation, run
from finetune.model import load_model, load_tokenizer
from finetune.tasks import load_task
from finetune.tasks.token_classification import windows as tc_windows
from tests.conftest import finetune_words, prepare, sample_rows
from tests.families import FAMILIES, SEQ2SEQ, build_family, byte_level
from tests.tasks.token_classification.conftest import state as tc_state

TASK = load_task("token_classification")
LABELS = ["B-DATE", "B-LOC", "B-ORG", "B-PER", "I-DATE", "I-LOC", "I-ORG", "I-PER", "O"]


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tiny").mkdir()
    prepare(folder, build_family(request.param, folder / "tiny"), TASK.name, (48, 12, 12), max_seq_length=48)
    steps = {"max_steps": 12, "evaluation_strategy": "steps", "eval_steps": 12, "logging_steps": 1}
    given = {**steps, "logging_strategy": "steps", "learning_rate": 5e-3, "per_device_train_batch_size": 8}
    run.main(finetune_words(folder, folder, **given))
    return folder


@pytest.mark.slow
def test_it_learns_and_is_saved(trained: Path) -> None:
    """`run` itself ends with an error unless both folders, loaded afresh, give the trained model's answers."""
    log = json.loads((trained / "pytorch" / "training.json").read_text())["log"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    for folder in (trained / "pytorch", next((trained / "mlflow").rglob("config.json")).parent):
        config = json.loads((folder / "config.json").read_text())
        assert [config["id2label"][str(i)] for i in range(len(LABELS))] == LABELS
        assert config["label2id"] == {name: i for i, name in enumerate(LABELS)}


@pytest.mark.slow
def test_it_loads_by_its_auto_class(trained: Path) -> None:
    """In plain transformers, but for BART and mBART, which transformers knows once this package is imported."""
    _, info = AutoModelForTokenClassification.from_pretrained(trained / "pytorch", output_loading_info=True)
    assert not any(info.values()), info
    model, new = load_model(trained / "pytorch", TASK, None)
    assert new == []
    assert (type(model).__module__.startswith("finetune")) == (model.config.model_type in ("bart", "mbart"))


@pytest.mark.slow
def test_both_folders_score_alike(trained: Path, tmp_path: Path) -> None:
    found = []
    for name, folder in (("mlflow_model_folder", "mlflow"), ("pytorch_model_folder", "pytorch")):
        words = ["--task", TASK.name, "--preprocess_output", str(trained / "data"), f"--{name}", str(trained / folder)]
        evaluation.main([*words, "--evaluation_result", str(tmp_path / folder)])
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
        found.append({key: value for key, value in metrics.items() if "second" not in key})
    assert found[0] == found[1]
    assert found[0]["accuracy"] > 0.5


@pytest.mark.slow
def test_words_are_read_as_inside_a_text(trained: Path) -> None:
    """RoBERTa, GPT-2, BART and ModernBERT have other tokens for a word after a space than for one without."""
    tokenizer = load_tokenizer(trained / "data" / "tokenizer", TASK)
    sentence: list[str] = next(r["tokens"] for r in sample_rows("test", TASK.name) if r["tokens"][2].isalpha())
    inside = tokenizer("x " + sentence[2], add_special_tokens=False)["input_ids"]
    alone = tokenizer([[sentence[2]]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
    assert inside[-len(alone) :] == alone
    plain: Any = AutoTokenizer.from_pretrained(trained / "pytorch")
    assert (
        plain([sentence], is_split_into_words=True)["input_ids"]
        == tokenizer([sentence], is_split_into_words=True)["input_ids"]
    )


@pytest.mark.slow
def test_a_head_of_other_classes_is_replaced(trained: Path, tmp_path: Path) -> None:
    """Nine classes in another order are as many, but not the same."""
    state = TASK.state(**json.loads((trained / "data" / "preprocess.json").read_text())["state"])
    same, new = load_model(trained / "pytorch", TASK, state)
    assert new == []
    state = TASK.state(**{**vars(state), "labels": LABELS[::-1]})
    other, new = load_model(trained / "pytorch", TASK, state)
    heads = {name: p for name, p in other.named_parameters() if name in new}
    assert heads.keys() == set(new) > set()
    theirs = dict(same.named_parameters())
    changed = {name for name, p in other.named_parameters() if not p.equal(theirs[name])}
    assert changed <= heads.keys() and any("weight" in name for name in changed)
    assert all(p.count_nonzero() == 0 for name, p in heads.items() if name.endswith("bias"))


@pytest.mark.slow
def test_a_renewed_head_begins_as_a_new_one(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=50, num_hidden_layers=1, hidden_size=64, num_attention_heads=2, intermediate_size=16)
    config.id2label = {0: "X", 1: "Y", 2: "Z"}
    saved = BertForTokenClassification(config)
    saved.classifier.bias.data.fill_(7)
    saved.save_pretrained(tmp_path)
    model, new = load_model(tmp_path, TASK, tc_state())
    assert new == ["classifier.bias", "classifier.weight"]
    assert 0.01 < float(model.classifier.weight.detach().std()) < 0.03 and not model.classifier.bias.any()


@pytest.mark.slow
def test_what_pretraining_left_of_a_head_is_kept(tmp_path: Path) -> None:
    """ModernBERT's dense layer before the classifier comes from masked language modelling."""
    config = ModernBertConfig(vocab_size=50, pad_token_id=0, **FAMILIES["modernbert"][3])
    pretrained = ModernBertForMaskedLM(config)
    pretrained.save_pretrained(tmp_path)
    model, new = load_model(tmp_path, TASK, tc_state())
    assert new == ["classifier.bias", "classifier.weight"]
    assert model.head.dense.weight.equal(pretrained.head.dense.weight)


@pytest.mark.slow
def test_a_head_of_questions_is_kept_whatever_labels_its_config_names(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, num_labels=3, **FAMILIES["gpt2"][3])
    saved = GPT2ForQuestionAnswering(config)
    saved.save_pretrained(tmp_path)
    model, new = load_model(tmp_path, load_task("question_answering"), None)
    assert new == [] and model.qa_outputs.weight.equal(saved.qa_outputs.weight)


@pytest.mark.slow
def test_bart_does_not_see_padding() -> None:
    model = AutoModelForTokenClassification.from_config(BartConfig(vocab_size=50, num_labels=3, **SEQ2SEQ)).eval()
    ids, padded = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    plain, masked = model(ids, torch.ones_like(ids)).logits, model(padded, mask).logits[:, :3]
    assert torch.allclose(plain, masked, atol=1e-5)
    assert not torch.allclose(plain, model(padded, torch.ones_like(padded)).logits[:, :3], atol=1e-5)


@pytest.mark.slow
def test_space_before_words_from_the_first_load_on(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(build_family("roberta", tmp_path), TASK)
    pieces = tokenizer([["the", "the"]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(pieces) == ["Ġthe", "Ġthe"]


@pytest.mark.slow
def test_words_of_qwen_are_read_as_inside_a_text(tmp_path: Path) -> None:
    """Its tokenizer cuts words before ByteLevel, as Llama 3's does."""
    tokenizer = byte_level(Qwen2Tokenizer, tmp_path)
    words = ["don't", "in", "2019", "the", "", "Oslo"]
    columns = tc_windows.encode([{"tokens": words}], tokenizer, tc_state(max_seq_length=100))
    assert columns["input_ids"][0] == tokenizer(" " + " ".join(filter(None, words)))["input_ids"]
    assert [int(word) for word in columns["word"][0] if word >= 0] == [0, 1, 2, 3, 5]


@pytest.mark.slow
def test_a_tokenizer_that_cuts_off_the_left(tmp_path: Path) -> None:
    folder = build_family("bert", tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))
    columns = tc_windows.encode([{"tokens": ["the"] * 60}], load_tokenizer(folder, TASK), tc_state(max_seq_length=20))
    assert sorted(int(word) for found in columns["word"] for word in found if word >= 0) == list(range(60))
