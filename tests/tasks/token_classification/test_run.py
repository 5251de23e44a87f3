"""The components one after another, through their command lines."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from seqeval.metrics import f1_score, precision_score, recall_score

from finetune import evaluation, model_selector, preprocess, run
from finetune.core.errors import ParameterError
from finetune.data.folders import SPLITS
from finetune.models.loading import load_model
from finetune.models.stored.configs import stored_state
from finetune.tasks import load_task
from tests.conftest import TRAINED_TAGS, finetune_words, sample_rows, write_jsonl
from tests.forking import Forks
from tests.results.test_card import execute, snippets
from tests.results.test_report import Page

pytestmark = pytest.mark.slow
TASK = load_task("token_classification")
WORDS = ["--task", TASK.name]
QUICK = {"max_steps": 75, "learning_rate": 5e-3, "per_device_train_batch_size": 8}
EVALUATED = {"evaluation_strategy": "steps", "eval_steps": 75, "metric_for_best_model": "accuracy"}


@pytest.fixture(scope="module")
def trained(trained_tags: Path) -> Path:
    return trained_tags


def evaluated(model: Path, output: Path, **given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(metrics.json, predictions.jsonl) of the evaluation component."""
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    evaluation.main([*WORDS, "--pytorch_model_folder", str(model), "--evaluation_result", str(output), *words])
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return json.loads((output / "metrics.json").read_text()), [json.loads(line) for line in lines]


def test_highest_f1_is_kept(trained: Path) -> None:
    record = json.loads((trained / "pytorch" / "training.json").read_text())
    scores = [entry["eval_f1"] for entry in record["log"] if "eval_f1" in entry]
    assert len(scores) == 4 and record["greater_is_better"]
    assert record["validation"]["f1"] == max(scores) > 0


def test_metrics_of_the_component_are_those_of_seqeval(trained: Path, prepared_tags: Path, tmp_path: Path) -> None:
    metrics, predictions = evaluated(trained / "pytorch", tmp_path, preprocess_output=prepared_tags / "data")
    gold, found = [row["ner_tags"] for row in sample_rows("test", TASK.name)[:40]], [p["tags"] for p in predictions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [f(gold, found) for f in (precision_score, recall_score, f1_score)]
    assert [metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected, abs=1e-9)
    assert sum(line["support"] for line in metrics["classes"].values()) > 0
    assert (metrics["rows"], metrics["rows_without_tags"]) == (40, 0)

    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = re.sub(r"\s+", " ", " ".join(Page(html).within("td")))
    assert f"all 40 {' '.join(f'{100 * metrics[name]:.2f}' for name in TASK.scoring.hub_metrics)}" in shown
    for kind, line in metrics["classes"].items():
        numbers = [f"{100 * line[name]:.2f}" for name in ("precision", "recall", "f1")]
        assert f"{kind} {' '.join(numbers)} {line['support']}" in shown
    assert all(f'title="{kind} as O: ' in html for kind in metrics["confusion"])


def test_one_row_of_1200_words_and_words_without_a_token(trained: Path, tmp_path: Path) -> None:
    rows = [{"tokens": ["word", "", "Oslo"] * 400, "ner_tags": ["O", "O", "B-LOC"] * 400}]
    rows += [{"tokens": ["\u200b"], "ner_tags": ["O"]}, {"tokens": ["Ada"], "ner_tags": ["B-QUEEN"]}]
    metrics, predictions = evaluated(
        trained / "pytorch", tmp_path / "scores", test_data=write_jsonl(tmp_path / "rows.jsonl", rows)
    )
    assert [len(p["tags"]) for p in predictions] == [1200, 1, 1]
    assert [i % 3 for i, score in enumerate(predictions[0]["scores"]) if not score] == [1] * 400
    assert (predictions[1]["tags"], predictions[1]["scores"]) == (["O"], [0.0])
    assert metrics["classes"]["QUEEN"]["recall"] == 0.0  # a tag that the model has never seen


def test_parts_of_speech(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from finetune import preprocess

    rows = [{"tokens": row["tokens"], "pos": ["X" if w.islower() else "Y" for w in row["tokens"]]} for row in
            sample_rows("train", TASK.name)[:60]]  # fmt: skip
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    model_selector.main([*WORDS, "--pytorch_model_path", str(tiny_model), "--output_dir", str(tmp_path / "model")])
    words = [*WORDS, "--train_file_path", str(file), "--tag_key", "pos", "--output_dir", str(tmp_path / "data")]
    preprocess.main([*words, "--model_selector_output", str(tmp_path / "model")])
    run.main(finetune_words(tmp_path, tmp_path, **QUICK, **EVALUATED))
    metrics, predictions = evaluated(tmp_path / "pytorch", tmp_path / "scores", preprocess_output=tmp_path / "data")
    said = capsys.readouterr().out
    assert "scheme: none, the tags mark no entities; scored by accuracy and macro F1" in said
    assert re.search(r"step 75/75 .* accuracy 0\.\d+", said)
    assert set(metrics["classes"]) == {"X", "Y"} and "strict_f1" not in metrics
    assert all(p["entities"] == [] for p in predictions)
    assert "Mean Accuracy by confidence" in (tmp_path / "scores" / "report.html").read_text()


@pytest.mark.parametrize("merge", [pytest.param("true", marks=pytest.mark.thorough), "false"])
def test_lora(prepared_tags: Path, tmp_path: Path, merge: str) -> None:
    """Head and class names come along; an unmerged folder can be imported again and finetuned further."""
    run.main(finetune_words(prepared_tags, tmp_path, **QUICK, apply_lora="true", merge_lora_weights=merge))
    state = stored_state(tmp_path / "pytorch", TASK)
    model, new = load_model(tmp_path / "pytorch", TASK, state)
    assert new == [] and model.config.id2label == dict(enumerate(state.labels))
    metrics, _ = evaluated(tmp_path / "pytorch", tmp_path / "scores", preprocess_output=prepared_tags / "data")
    assert metrics["accuracy"] > 0.5
    words = [*WORDS, "--pytorch_model_path", str(tmp_path / "pytorch"), "--output_dir", str(tmp_path / "again")]
    model_selector.main(words)
    again, new = load_model(tmp_path / "again" / "model", TASK, state)
    assert new == []
    assert all(p.equal(dict(model.named_parameters())[name]) for name, p in again.named_parameters())


def test_a_model_from_elsewhere_is_scored_by_its_own_class_names(trained: Path, tmp_path: Path) -> None:
    """The config without our entry, its classes under other names: its answers are in those names."""
    folder = shutil.copytree(trained / "pytorch", tmp_path / "theirs", ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "training.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["finetune"]
    rows = write_jsonl(tmp_path / "rows.jsonl", sample_rows("train", TASK.name)[:40])
    ours, predictions = evaluated(trained / "pytorch", tmp_path / "ours", test_data=rows)
    kind = next(tag[2:] for p in predictions for tag in p["tags"] if tag != "O")  # one that it predicts
    config["id2label"] = {i: name.replace(kind, "OTHER") for i, name in config["id2label"].items()}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    theirs, others = evaluated(folder, tmp_path / "theirs_scores", test_data=rows)
    assert [p["tags"] for p in others] == [[t.replace(kind, "OTHER") for t in p["tags"]] for p in predictions]
    same = next(name for name in ours["classes"] if name != kind)
    assert theirs["classes"][kind]["recall"] == 0.0 and ours["classes"][same] == theirs["classes"][same]


def test_words_that_are_not_annotated(prepared_tags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Words tagged - and a tag that means nothing, a whole row of it among them: a step with nothing to learn from."""
    rows = sample_rows("train", TASK.name)[:48]
    for i, changed in enumerate(rows[::4]):
        changed["ner_tags"][0] = "-" if i else "B_LOC"
    rows[5] = {"tokens": ["Oslo"], "ner_tags": ["B_LOC"]}
    file, model = str(write_jsonl(tmp_path / "rows.jsonl", rows)), str(prepared_tags / "model")
    (tmp_path / "model").symlink_to(model)
    words = [*WORDS, "--model_selector_output", model, "--output_dir", str(tmp_path / "data")]
    preprocess.main([*words, *(word for split in SPLITS for word in (f"--{split}_file_path", file))])
    steps = {"logging_strategy": "steps", "logging_steps": 1}
    run.main(finetune_words(tmp_path, tmp_path / "out", **steps, class_weights="balanced"))
    losses = [e["loss"] for e in json.loads((tmp_path / "out/pytorch/training.json").read_text())["log"] if "loss" in e]
    assert len(losses) == 48 and losses.count(0.0) == 1 and min(losses) >= 0
    capsys.readouterr()
    ours, _ = evaluated(tmp_path / "out/pytorch", tmp_path / "split", preprocess_output=tmp_path / "data")
    assert "B_LOC means nothing in IOB2; did you mean B-LOC? left out" in capsys.readouterr().out
    theirs, _ = evaluated(tmp_path / "out/pytorch", tmp_path / "file", test_data=file)
    assert ours["confusion"] == theirs["confusion"]
    counted = sum(n for line in ours["confusion"].values() for n in line.values())
    assert counted == sum(tag not in ("-", "B_LOC") for given in rows for tag in given["ner_tags"])


def test_class_weights_are_those_of_the_run_that_is_resumed(trained: Path, prepared_tags: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    given = {**TRAINED_TAGS, "class_weights": "sqrt", "resume_from_checkpoint": "true"}
    words = finetune_words(prepared_tags, tmp_path, **given)
    with pytest.raises(ParameterError, match="was made with class_weights none, not sqrt"):
        run.main(words)
    used = yaml.safe_load((tmp_path / "pytorch" / "resolved_config.yaml").read_text())["class_weights"]
    assert used["value"] == "sqrt" and used["origin"].startswith("derived: sqrt, of ")
    assert used["used"]["O"] < 1 < used["used"]["B-PER"]


@pytest.mark.thorough  # those of a card of questions are run by tests/results/test_card.py
def test_snippets_of_the_card_work(forks: Forks, trained: Path) -> None:
    transformers, mlflow = snippets(trained / "pytorch")
    assert [line.split()[0] for line in execute(forks, transformers, trained).splitlines()] == [
        "Ada", "Lovelace", "lived", "in", "London", ".",
    ]  # fmt: skip
    assert "entities" in execute(forks, mlflow, trained)
    assert "IOB2" in (trained / "pytorch" / "README.md").read_text()
