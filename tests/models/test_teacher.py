"""Teachers that can't teach are refused, with what to give in their place, by a run and by its check."""

import json
from pathlib import Path

import pytest

from finetune import run
from finetune.core.errors import FinetuneError, ModelError, UnsupportedError
from tests.conftest import build_tiny_model, finetune_words, prepare
from tests.families import build_family

QA, TC = "question_answering", "token_classification"
FEW = {"max_steps": 2, "evaluation_strategy": "steps", "eval_steps": 2, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module", params=[QA, TC])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tiny").mkdir()
    return prepare(folder, build_tiny_model(folder / "tiny"), request.param, (48, 12, 12), max_seq_length=64)


def refusal(
    prepared: Path, output: Path, teacher: Path, kind: type[FinetuneError] = ModelError, **given: object
) -> str:
    with pytest.raises(kind) as raised:
        run.main(finetune_words(prepared, output, **{**FEW, "teacher_model_path": teacher, **given}))
    return str(raised.value)


def test_not_trained_for_the_task(prepared: Path, tmp_path: Path) -> None:
    said = refusal(prepared, tmp_path, prepared / "tiny")
    assert "other classes" in said or "was not trained for question_answering" in said


@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_another_vocabulary(prepared: Path, tmp_path: Path) -> None:
    said = refusal(prepared, tmp_path, build_family("roberta", tmp_path / "roberta"))
    assert "has another tokenizer" in said and "a teacher of the same family" in said


@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_windows_that_it_can_not_read(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    said = refusal(prepared, tmp_path, build_tiny_model(tmp_path / "short", max_position_embeddings=32))
    assert "reads 32 tokens, windows have up to 64" in said and "--max_seq_length 32" in said


@pytest.mark.parametrize("prepared", [TC], indirect=True)
def test_other_classes(prepared: Path, tmp_path: Path) -> None:
    run.main(finetune_words(prepared, tmp_path / "first", **FEW))
    teacher = tmp_path / "first" / "pytorch"
    config = json.loads((teacher / "config.json").read_text())
    config["id2label"]["0"] = "B-SHIP"
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (teacher / "config.json").write_text(json.dumps(config))
    said = refusal(prepared, tmp_path, teacher)
    assert "has other classes" in said and "B-SHIP" in said


@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_no_folder_of_a_model(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty has no config.json" in refusal(prepared, tmp_path, tmp_path / "empty")


@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_with_an_engine_that_shards(prepared: Path, tmp_path: Path) -> None:
    said = refusal(prepared, tmp_path, prepared / "tiny", UnsupportedError, apply_deepspeed="true")
    assert "--teacher_model_path with DeepSpeed or FSDP" in said
