"""Every family through the command line: import, preprocess, train, save, reload, evaluate."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForTokenClassification, AutoTokenizer

from finetune import evaluation, run
from finetune.model import load_model, load_tokenizer
from finetune.tasks import load_task
from tests.conftest import finetune_words, prepare, sample_rows
from tests.families import FAMILIES, build_family

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
    state = TASK.state(**{**json.loads((trained / "data" / "preprocess.json").read_text())["state"]})
    same, new = load_model(trained / "pytorch", TASK, state)
    assert new == []
    state = TASK.state(**{**vars(state), "labels": LABELS[::-1]})
    other, new = load_model(trained / "pytorch", TASK, state)
    heads = {name: p for name, p in other.named_parameters() if name in new}
    assert heads.keys() == set(new) > set()
    theirs = dict(same.named_parameters())
    for name, p in other.named_parameters():
        assert (name in heads) == (not p.equal(theirs[name])) or name.endswith("bias")
