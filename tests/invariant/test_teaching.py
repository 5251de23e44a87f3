"""A loss of which a share is the distance from a teacher: that of a plain loop, however steps are divided."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM, AutoModelForTokenClassification

from finetune import run
from tests.conftest import build_tiny_model, finetune_words, prepare
from tests.forking import Forks
from tests.invariant import test_loss, test_writing
from tests.invariant.dividing import Whole, divided, trained_once, whole_and_divided
from tests.invariant.test_loss import INPUTS, OPTIONS, SHARED, STEPS, trajectory
from tests.writers import build_writer

pytestmark = pytest.mark.slow
QA, TC, TR = "question_answering", "token_classification", "translation"
MODELS = {QA: AutoModelForQuestionAnswering, TC: AutoModelForTokenClassification, TR: AutoModelForSeq2SeqLM}
WEIGHT, TEMPERATURE = 0.7, 3.0
TAUGHT = {**SHARED, "distillation_weight": WEIGHT, "distillation_temperature": TEMPERATURE}
EVALUATED = {"per_device_eval_batch_size": 13}


@pytest.fixture(scope="module", params=[QA, TC, pytest.param(TR, marks=pytest.mark.thorough)])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data without dropout, and in `teacher` a model that was finetuned on them with another seed."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "tiny").mkdir()
    if task == TR:
        model = build_writer("t5", folder / "tiny", feed_forward_proj="gated-gelu")
        given: dict[str, Any] = {
            "max_seq_length": 60,
            "max_target_length": 60,
            "source_lang": "en",
            "target_lang": "tav",
        }
    else:
        model = build_tiny_model(folder / "tiny", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        given = OPTIONS[task]
    prepare(folder, model, task, (160, 13, 12), **given)
    trained = {**SHARED, **EVALUATED, "learning_rate": 5e-3, "seed": 1, "per_device_train_batch_size": 8}
    run.main(finetune_words(folder, folder / "taught", **trained))
    return folder


def teacher_of(prepared: Path) -> Path:
    return prepared / "taught" / "pytorch"


def words(prepared: Path, output: Path, batch: int = 8, **given: Any) -> list[str]:
    how = {**TAUGHT, **EVALUATED, "teacher_model_path": teacher_of(prepared), **given}
    return finetune_words(prepared, output, per_device_train_batch_size=batch, **how)


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return trained_once(partial(words, prepared), tmp_path_factory.mktemp)


def test_plain_loop(whole: Whole, prepared: Path) -> None:
    task = prepared.name.rstrip("0123456789")
    taught = Textbook(MODELS[task].from_pretrained(teacher_of(prepared)).eval(), task)
    if task == TR:
        plain = test_writing.plain_losses(prepared, taught=taught)
    else:
        plain = test_loss.plain_losses(prepared, SHARED["learning_rate"], taught=taught)
    assert trajectory(whole()).losses == pytest.approx(plain, abs=1e-5)


class Textbook:
    """(1 - w) * loss + w * T^2 * KL(teacher || student), each distribution by itself and without what is padded."""

    def __init__(self, teacher: Any, task: str) -> None:
        self.teacher, self.task = teacher, task

    def __call__(self, loss: torch.Tensor, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        given = INPUTS if self.task != TR else ("input_ids", "attention_mask", "decoder_input_ids")
        with torch.no_grad():
            taught = self.teacher(**{name: batch[name] for name in given})
        found = [
            functional.kl_div((one / TEMPERATURE).log_softmax(-1), (two / TEMPERATURE).softmax(-1), reduction="sum")
            for one, two in self.pairs(outputs, taught, batch)
        ]
        return (1 - WEIGHT) * loss + WEIGHT * TEMPERATURE**2 * torch.stack(found).mean()

    def pairs(self, outputs: Any, taught: Any, batch: dict[str, torch.Tensor]) -> Iterator[tuple[Any, Any]]:
        if self.task == QA:
            for i, mask in enumerate(batch["attention_mask"].bool()):
                for name in ("start_logits", "end_logits"):
                    yield outputs[name][i][mask], taught[name][i][mask]
            return
        labelled = batch["labels"] != -100
        yield from zip(outputs.logits[labelled], taught.logits[labelled], strict=True)


@divided
@pytest.mark.parametrize("prepared", [TC], indirect=True)
def test_divided_steps(
    forks: Forks, whole: Whole, prepared: Path, tmp_path: Path, how: str, batch: int, accumulation: int
) -> None:
    divided_words = partial(words, prepared)
    one, other = whole_and_divided(forks, whole(), divided_words, tmp_path, how, batch, accumulation)
    assert other.losses == pytest.approx(one.losses, abs=1e-5)
    assert other.norms == pytest.approx(one.norms, abs=1e-5)


@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_a_teacher_that_counts_for_nothing_changes_nothing(prepared: Path, tmp_path: Path) -> None:
    """It draws no numbers, and the mean over a step is divided alike."""
    run.main(words(prepared, tmp_path / "taught", distillation_weight=0))
    given = {**SHARED, **EVALUATED, "per_device_train_batch_size": 8}
    run.main(finetune_words(prepared, tmp_path / "alone", **given))
    one, other = (load_file(tmp_path / name / "pytorch" / "model.safetensors") for name in ("taught", "alone"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_a_run_goes_on(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, from an MLflow model of the same teacher; not with another one, or without."""
    run.main(words(prepared, tmp_path / "whole", eval_steps=10))
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "pytorch" / f"checkpoint-{STEPS}")
    served = prepared / "taught" / "mlflow"
    going_on: dict[str, Any] = {"eval_steps": 10, "resume_from_checkpoint": "true"}
    run.main(words(prepared, tmp_path / "broken", **going_on, teacher_model_path=served))
    one, other = (
        load_file(tmp_path / name / "pytorch" / f"checkpoint-{STEPS}" / "model.safetensors")
        for name in ("whole", "broken")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "0.7 of the loss is the distance from it, at temperature 3\n" in capsys.readouterr().out
    with pytest.raises(Exception, match="was taught by another teacher"):
        run.main(words(prepared, tmp_path / "broken", **going_on, teacher_model_path=tmp_path / "whole" / "pytorch"))
