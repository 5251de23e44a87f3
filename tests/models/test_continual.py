"""A finished model finetuned further: on other rows, with other tags, for another task."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import model_selector, preprocess, run
from finetune.data.folders import SelectedModel
from finetune.models.head import head_parameters
from finetune.models.loading import load_model
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.results.saving import save_pytorch
from finetune.tasks import load_task
from tests.conftest import finetune_words, prepare, sample_rows, write_jsonl
from tests.families import FAMILIES, build_family

TAGS, QUESTIONS = "token_classification", "question_answering"
STEPS = {"max_steps": 6, "per_device_train_batch_size": 16, "learning_rate": 5e-3}
PORTS = ["pytorch_model_path", pytest.param("mlflow_model_path", marks=pytest.mark.thorough)]
UNMERGED = {"apply_lora": "true", "merge_lora_weights": "false"}


@pytest.fixture(scope="module", params=["full", "unmerged"])
def finished(request: pytest.FixtureRequest, prepared_tags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run on tags."""
    output = tmp_path_factory.mktemp("finished")
    run.main(finetune_words(prepared_tags, output, **STEPS, **(UNMERGED if request.param == "unmerged" else {})))
    return output


def imported(output: Path, folder: Path, task: str, port: str = "pytorch_model_path") -> Path:
    """The finished model as the next run's import takes it."""
    source = output / ("pytorch" if port == "pytorch_model_path" else "mlflow")
    model_selector.main(["--task", task, f"--{port}", str(source), "--output_dir", str(folder / "model")])
    return folder


def prepared(folder: Path, task: str, rows: list[dict[str, Any]]) -> Path:
    """Preprocess them beside an imported model."""
    words = ["--task", task, "--model_selector_output", str(folder / "model"), "--output_dir", str(folder / "data")]
    preprocess.main([*words, "--train_file_path", str(write_jsonl(folder / "rows.jsonl", rows))])
    return folder


def prepared_on(folder: Path, before: Path) -> Path:
    """The encoded rows of an earlier run beside an imported model."""
    shutil.copytree(before / "data", folder / "data")
    return folder


def renamed(rows: list[dict[str, Any]], names: dict[str, str]) -> list[dict[str, Any]]:
    """Rows whose entities are of other types; "" makes them no entities."""

    def tag(before: str) -> str:
        letter, _, kind = before.partition("-")
        kind = names.get(kind, kind)
        return f"{letter}-{kind}" if kind else "O"

    return [{**row, "ner_tags": [tag(t) for t in row["ner_tags"]]} for row in rows]


def first_loss(output: Path) -> float:
    log = json.loads((output / "pytorch" / "training.json").read_text())["log"]
    return float(next(entry["loss"] for entry in log if "loss" in entry))


@pytest.mark.slow
@pytest.mark.parametrize("port", PORTS)
def test_it_goes_on_from_where_it_was(
    finished: Path, port: str, prepared_tags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same tags nothing is new, and the loss begins where a new head's ends."""
    folder = prepared(imported(finished, tmp_path, TAGS, port), TAGS, sample_rows("train", TAGS)[:240])
    words = {**STEPS, "max_steps": 1, "logging_strategy": "steps", "logging_steps": 1}
    run.main(finetune_words(folder, tmp_path, **words))
    assert "new head" not in capsys.readouterr().out
    run.main(finetune_words(prepared_tags, tmp_path / "anew", **words))
    assert "new head, random until trained: classifier.bias, classifier.weight" in capsys.readouterr().out
    assert first_loss(tmp_path) < first_loss(tmp_path / "anew") - 0.3


@pytest.mark.slow
def test_tags_of_the_new_rows(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes that both have keep what they learnt; others are made, or left out, and both is said."""
    rows = renamed(sample_rows("train", TAGS)[:120], {"PER": "ARTIST", "DATE": ""})
    folder = prepared(imported(finished, tmp_path, TAGS), TAGS, rows)
    run.main(finetune_words(folder, tmp_path, **{**STEPS, "max_steps": 1, "learning_rate": 1e-9}))
    said = capsys.readouterr().out
    assert "classes: 5 of 7 go on from the weights they have; new, at random: B-ARTIST, I-ARTIST" in said
    assert "left out, since no row has them: B-DATE, B-PER, I-DATE, I-PER" in said and "new head" not in said
    task = load_task(TAGS)
    old, _ = load_model(SelectedModel.model_folder(folder / "model"), task, None)
    new, random = load_model(tmp_path / "pytorch", task, None)
    assert random == [] and sorted(new.config.id2label.values()) == [
        "B-ARTIST", "B-LOC", "B-ORG", "I-ARTIST", "I-LOC", "I-ORG", "O",
    ]  # fmt: skip
    for label in ("B-LOC", "I-ORG", "O"):
        one, other = (m.classifier.weight[m.config.label2id[label]] for m in (old, new))
        assert (one - other).abs().max() < 1e-6


@pytest.mark.slow
def test_another_task(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepared(imported(finished, tmp_path, QUESTIONS), QUESTIONS, sample_rows("train", QUESTIONS)[:40])
    said = capsys.readouterr().out
    assert "random until trained: qa_outputs.bias, qa_outputs.weight (saved from BertForTokenClassification)" in said
    run.main(finetune_words(folder, tmp_path, **{**STEPS, "max_steps": 1}))
    assert json.loads((tmp_path / "pytorch" / "config.json").read_text())["finetune"]["task"] == QUESTIONS


@pytest.mark.slow
def test_an_unmerged_tagger_still_has_the_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """T5's, which tags have no use for, and questions do."""
    (tmp_path / "t5").mkdir()
    folder = prepare(tmp_path, build_family("t5", tmp_path / "t5"), TAGS, (48, 6, 6), max_seq_length=48)
    run.main(finetune_words(folder, tmp_path / "out", **{**STEPS, "max_steps": 1}, **UNMERGED))
    begun, _ = load_model(SelectedModel.model_folder(folder / "model"), load_task(QUESTIONS), None)
    capsys.readouterr()
    imported(tmp_path / "out", tmp_path / "next", QUESTIONS)
    assert "weights of the body are missing" not in capsys.readouterr().out
    moved, new = load_model(SelectedModel.model_folder(tmp_path / "next" / "model"), load_task(QUESTIONS), None)
    assert set(new) == set(head_parameters(moved))
    of_decoder = [name for name, _ in moved.named_parameters() if name.startswith("decoder.block.")]
    assert len(of_decoder) > 10
    assert all(moved.get_parameter(name).equal(begun.get_parameter(name)) for name in of_decoder)


@pytest.mark.slow
@pytest.mark.parametrize("port", PORTS)
def test_adapters_upon_adapters(prepared: Path, port: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unmerged model of questions begins where it ended, with new adapters beside the old ones, merged."""
    given = {"apply_lora": "true", "merge_lora_weights": "false", "lora_r": 2, "learning_rate": 1e-12, "max_steps": 1}
    run.main(finetune_words(prepared, tmp_path / "first", **{**STEPS, **UNMERGED}))
    folder = prepared_on(imported(tmp_path / "first", tmp_path / "next", QUESTIONS, port), prepared)
    capsys.readouterr()
    run.main(finetune_words(folder, tmp_path / "second", **{**STEPS, **given}))
    assert "new head" not in capsys.readouterr().out
    task = load_task(QUESTIONS)
    one, other = (load_model(tmp_path / name / "pytorch", task, None)[0] for name in ("first", "second"))
    for name, parameter in one.named_parameters():
        assert torch.allclose(parameter, other.get_parameter(name), atol=1e-6), name


@pytest.mark.slow
def test_a_checkpoint_with_an_adapter_alone_is_refused(
    prepared_tags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from finetune.core.errors import ModelError

    run.main(finetune_words(prepared_tags, tmp_path, **{**STEPS, "max_steps": 1}, **UNMERGED))
    shutil.copytree(tmp_path / "pytorch" / "checkpoint-1", tmp_path / "alone" / "pytorch")
    with pytest.raises(ModelError, match=r"is an adapter alone[\s\S]*fix: give the pytorch_model_folder of a run"):
        imported(tmp_path / "alone", tmp_path, TAGS)
    with pytest.raises(ModelError, match="is an adapter alone"):
        load_model(tmp_path / "alone" / "pytorch", load_task(TAGS), None)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("before", "after"), [(QUESTIONS, TAGS), (TAGS, QUESTIONS)])
def test_every_family_is_taken_from_one_task_to_the_other(
    family: str, before: str, after: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its body, whatever the class for questions calls it, and a new head."""
    source, task, other = tmp_path / "source", load_task(before), load_task(after)
    source.mkdir()
    build_family(family, source)
    model_selector.main(["--task", before, "--pytorch_model_path", str(source), "--output_dir", str(tmp_path / "one")])
    model, _ = load_model(SelectedModel.model_folder(tmp_path / "one"), task, None)
    (tmp_path / "two" / "pytorch").mkdir(parents=True)
    save_pytorch(model, load_tokenizer(source, task), tmp_path / "two" / "pytorch")
    imported(tmp_path / "two", tmp_path, after)
    moved, new = load_model(SelectedModel.model_folder(tmp_path / "model"), other, None)
    assert "random until trained" in capsys.readouterr().out and set(head_parameters(moved)) <= set(new)
    if (family, after) != ("t5", QUESTIONS):  # whose tagger has no decoder
        assert set(head_parameters(moved)) == set(new)
    ours = {name.removeprefix(f"{model.base_model_prefix}."): p for name, p in model.named_parameters()}
    theirs = {name.removeprefix(f"{moved.base_model_prefix}."): p for name, p in moved.named_parameters()}
    shared = (ours.keys() & theirs.keys()) - set(head_parameters(moved))
    assert len(shared) > 10 and all(theirs[name].equal(ours[name]) for name in shared)
