"""Runs that prune: exact however steps are divided, gone on with bit for bit, and saved as what was measured."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from finetune import evaluation, run
from finetune.models import blocks
from tests.conftest import build_tiny_model, finetune_words, prepare
from tests.families import build_family
from tests.forking import Forks
from tests.invariant.dividing import Whole, divided, trained_once, whole_and_divided
from tests.invariant.test_loss import OPTIONS, SHARED, STEPS

pytestmark = pytest.mark.slow
thorough = pytest.mark.thorough
METHODS = ["gates", pytest.param("taylor", marks=thorough)]
OTHERS = ("mpnet", "electra", "roberta")
QA, TC = "question_answering", "token_classification"
PRUNED = {**SHARED, "learning_rate": 3e-3, "apply_pruning": "true", "pruning_ratio": 0.5, "eval_steps": 5}
PRUNED |= {"per_device_eval_batch_size": 13}
LAST = 12  # the step after which no more gates close


@pytest.fixture(scope="module", params=[QA, TC])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data without dropout."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "tiny").mkdir()
    model = build_tiny_model(folder / "tiny", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return prepare(folder, model, task, (160, 13, 12), **OPTIONS[task])


def words(prepared: Path, output: Path, batch: int = 8, **given: Any) -> list[str]:
    return finetune_words(prepared, output, **{**PRUNED, "per_device_train_batch_size": batch, **given})


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return trained_once(partial(words, prepared), tmp_path_factory.mktemp)


def weights(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch" / f"checkpoint-{step}" / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
@divided
@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_divided_steps(
    forks: Forks, whole: Whole, prepared: Path, tmp_path: Path, how: str, batch: int, accumulation: int, method: str
) -> None:
    """The same losses, norms and scores, and the very same gates."""
    given = {"pruning_method": method, "eval_steps": STEPS}
    undivided, divided_words = whole(**given), partial(words, prepared, **given)
    one, other = whole_and_divided(forks, undivided, divided_words, tmp_path, how, batch, accumulation)
    assert other.losses == pytest.approx(one.losses, abs=1e-5)
    assert other.norms == pytest.approx(one.norms, abs=1e-5)
    all_at_once, divided = weights(undivided), weights(tmp_path / "divided")
    gates, scores = ([name for name in all_at_once if name.endswith(of)] for of in (".gates", ".scores"))
    assert len(gates) == len(scores) == 4
    for name in gates:
        assert torch.equal(all_at_once[name], divided[name]), name
    for name in scores:
        assert torch.allclose(all_at_once[name], divided[name], rtol=1e-3, atol=1e-4), name
        assert all_at_once[name].abs().max() > 0, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [5, 10])  # while gates close; 10 has closed some
@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_a_run_goes_on(
    whole: Whole, prepared: Path, tmp_path: Path, method: str, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit: scores, gates and what the optimizer knows of them are in the checkpoint."""
    unbroken = whole(pruning_method=method)
    shutil.copytree(unbroken, tmp_path / "broken")
    for checkpoint in (tmp_path / "broken" / "pytorch").glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    on = {"pruning_method": method, "resume_from_checkpoint": "true"}
    run.main(words(prepared, tmp_path / "broken", **on))
    assert f"going on from checkpoint-{step}\n" in capsys.readouterr().out
    one, other = weights(unbroken), weights(tmp_path / "broken")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(Exception, match=r"was made with pruning_ratio 0\.5, not 0\.3"):
        run.main(words(prepared, tmp_path / "broken", **on, pruning_ratio=0.3))


def test_from_training_to_answers(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best model is one whose gates have all closed; both folders have its shapes, and the same scores."""
    run.main(words(prepared, tmp_path))
    said = capsys.readouterr().out
    assert f"pruning: step {LAST}, all gates that will close are closed" in said
    assert int(said.partition("best at step ")[2].partition(":")[0]) in (15, 20)
    folder = tmp_path / "pytorch"
    kept = json.loads((folder / "config.json").read_text())[blocks.KEY]
    sizes = [(len(layer["heads"]), layer["columns"]) for layer in kept]
    stored = load_file(folder / "model.safetensors")
    for i, (heads, columns) in enumerate(sizes):
        layer = f"bert.encoder.layer.{i}"
        assert stored[f"{layer}.attention.self.value.weight"].shape == (heads * 16, 32)
        assert stored[f"{layer}.intermediate.dense.weight"].shape == (columns, 32)
    of_blocks = sum(heads * 16 * (4 * 32 + 3) + columns * 65 for heads, columns in sizes)
    whole = 2 * (2 * 16 * (4 * 32 + 3) + 64 * 65)
    assert 0.5 - 16 * 131 / whole <= of_blocks / whole <= 0.5
    task = prepared.name.rstrip("0123456789")
    for name in ("pytorch", "mlflow"):
        result = tmp_path / f"by_{name}"
        evaluation.main(
            ["--task", task, "--preprocess_output", str(prepared / "data"), f"--{name}_model_folder",
             str(tmp_path / name), "--evaluation_result", str(result)]
        )  # fmt: skip
    one, other = (
        pd.read_json(tmp_path / name / "predictions.jsonl", lines=True) for name in ("by_pytorch", "by_mlflow")
    )
    assert one.equals(other)


@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_the_best_is_one_that_is_pruned(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is learnt and nothing cut, so that all evaluations are alike: the first after the last gate counts."""
    run.main(words(prepared, tmp_path, learning_rate=0, pruning_ratio=0, pruning_method="taylor"))
    assert "best at step 15: " in capsys.readouterr().out


def test_what_scores_are(whole: Whole) -> None:
    """Steps of the optimizer, of at most its rate each; or sums of squares, which no such step has touched."""
    folders = {method: whole(pruning_method=method, eval_steps=STEPS) for method in ("gates", "taylor")}
    learnt, summed = (
        torch.cat([value for name, value in weights(folder).items() if name.endswith(".scores")])
        for folder in folders.values()
    )
    assert learnt.min() < 0 < learnt.max() and learnt.abs().max() <= 0.01 * STEPS
    assert summed.min() >= 0 and summed.max() < 0.01 and len(summed) == len(learnt) == 2 * (2 + 64)
    optimizer = {
        method: torch.load(folder / "pytorch" / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True)
        for method, folder in folders.items()
    }
    assert [len(found["param_groups"]) for found in optimizer.values()] == [3, 2]
    assert optimizer["gates"]["param_groups"][2]["initial_lr"] == 0.01


@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_nothing_to_cut_changes_nothing(prepared: Path, tmp_path: Path) -> None:
    """Gates that stay open and a norm that doesn't count them: the weights of a run without, bit for bit."""
    run.main(words(prepared, tmp_path / "gated", pruning_ratio=0))
    run.main(words(prepared, tmp_path / "plain", apply_pruning="false"))
    one, other = (load_file(tmp_path / name / "pytorch" / "model.safetensors") for name in ("gated", "plain"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["distilbert", *(pytest.param(name, marks=thorough) for name in OTHERS)])
def test_families(family: str, tmp_path: Path) -> None:
    """With a teacher, bf16, and layers that are computed again."""
    (tmp_path / "tiny").mkdir()
    prepare(tmp_path, build_family(family, tmp_path / "tiny"), TC, (48, 12, 12))
    run.main(finetune_words(tmp_path, tmp_path / "teacher", max_steps=2, per_device_train_batch_size=8))
    given = {**PRUNED, "teacher_model_path": tmp_path / "teacher" / "pytorch", "distillation_weight": 0.9}
    again = str(family != "mpnet").lower()  # transformers can't with it
    given |= {"precision": "bf16", "gradient_checkpointing": again, "per_device_train_batch_size": 8}
    run.main(finetune_words(tmp_path, tmp_path / "student", **given))
    stored = json.loads((tmp_path / "student" / "pytorch" / "config.json").read_text())
    assert sum(layer["columns"] for layer in stored[blocks.KEY]) < 128
