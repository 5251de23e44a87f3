"""Runs that train with rounding: gone on with bit for bit, saved as a plain model, and rounded again as in training."""

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import run
from finetune.models import blocks
from finetune.models.adapt import fake_quantisation
from tests.conftest import build_tiny_model, finetune_words, prepare
from tests.families import build_family
from tests.forking import Forks
from tests.invariant.dividing import Whole, divided, trained_once, whole_and_divided
from tests.invariant.test_loss import OPTIONS, SHARED, STEPS, trajectory

pytestmark = pytest.mark.slow
thorough = pytest.mark.thorough
OTHERS = ("mpnet", "electra", "roberta")
QA, TC = "question_answering", "token_classification"
ROUNDED = {**SHARED, "learning_rate": 3e-3, "apply_qat": "true", "eval_steps": 10, "per_device_eval_batch_size": 13}


@pytest.fixture(scope="module", params=[QA, TC])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data without dropout."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "tiny").mkdir()
    model = build_tiny_model(folder / "tiny", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return prepare(folder, model, task, (160, 13, 12), **OPTIONS[task])


def words(prepared: Path, output: Path, batch: int = 8, **given: Any) -> list[str]:
    return finetune_words(prepared, output, **{**ROUNDED, "per_device_train_batch_size": batch, **given})


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return trained_once(partial(words, prepared), tmp_path_factory.mktemp)


def weights(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch" / f"checkpoint-{step}" / "model.safetensors")


@divided
@pytest.mark.thorough
@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_divided_steps(
    forks: Forks, whole: Whole, prepared: Path, tmp_path: Path, how: str, batch: int, accumulation: int
) -> None:
    """Nearly the same losses: a number halfway between two of the grid goes to either, by the last bit of a sum."""
    undivided, divided_words = whole(eval_steps=STEPS), partial(words, prepared, eval_steps=STEPS)
    one, other = whole_and_divided(forks, undivided, divided_words, tmp_path, how, batch, accumulation)
    assert other.losses == pytest.approx(one.losses, abs=2e-3)
    all_at_once, parts = weights(undivided), weights(tmp_path / "divided")
    edges = [name for name in all_at_once if name.endswith(".edges")]
    assert len(edges) == 4 * 2
    for name in edges:
        assert torch.allclose(all_at_once[name], parts[name], atol=2e-3), name


@pytest.mark.thorough
@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_a_run_goes_on(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit: ranges, and what the optimizer knows of them, are in the checkpoint, and are not set again."""
    run.main(words(prepared, tmp_path / "whole"))
    assert "ranges are those of " in capsys.readouterr().out
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "pytorch" / f"checkpoint-{STEPS}")
    run.main(words(prepared, tmp_path / "broken", resume_from_checkpoint="true"))
    said = capsys.readouterr().out
    assert "going on from checkpoint-10\n" in said and "ranges are those" not in said
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    before = weights(tmp_path / "whole", 10)
    assert all(not torch.equal(one[name], before[name]) for name in one if name.endswith(".edges"))
    with pytest.raises(Exception, match="was made with apply_qat true, not false"):
        run.main(words(prepared, tmp_path / "broken", resume_from_checkpoint="true", apply_qat="false"))


def test_what_is_saved(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights of the best checkpoint in plain layers, the ranges in config.json; trained on, they are forgotten."""
    run.main(words(prepared, tmp_path, eval_steps=STEPS))
    said = capsys.readouterr().out
    assert "without rounding, as PyTorch will compute it:" in said
    saved, stored = load_file(tmp_path / "pytorch" / "model.safetensors"), weights(tmp_path)
    assert saved.keys() == {name for name in stored if not name.endswith(".edges")}
    assert all(torch.equal(value, stored[name]) for name, value in saved.items())
    ranges = json.loads((tmp_path / "pytorch" / "config.json").read_text())[fake_quantisation.KEY]
    assert len(ranges) == 4 * 2
    for name, edges in ranges.items():
        assert edges == pytest.approx(stored[f"{name}.grid.edges"].tolist())
    final = json.loads((tmp_path / "pytorch" / "training.json").read_text())["validation"]
    rounded = trajectory(tmp_path).evaluation["eval_loss"]
    assert final["loss"] != rounded and math.isclose(final["loss"], rounded, rel_tol=0.1)


@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_a_run_that_prunes_too(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gone on with bit for bit while gates close; what is saved is cut, with the range of each layer that is left."""
    both = {"apply_pruning": "true", "pruning_ratio": 0.5, "eval_steps": 5}
    run.main(words(prepared, tmp_path / "whole", **both))
    said = capsys.readouterr().out
    assert said.count("ranges are set again") == 1
    assert int(said.partition("best at step ")[2].partition(":")[0]) in (15, 20)
    assert "without rounding, as PyTorch will compute it:" in said and "pruned to " in said
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for step in (15, 20):
        shutil.rmtree(tmp_path / "broken" / "pytorch" / f"checkpoint-{step}")
    run.main(words(prepared, tmp_path / "broken", resume_from_checkpoint="true", **both))
    assert "going on from checkpoint-10\n" in capsys.readouterr().out
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    saved = json.loads((tmp_path / "whole" / "pytorch" / "config.json").read_text())
    assert sum(layer["columns"] for layer in saved[blocks.KEY]) < 128
    assert len(saved[fake_quantisation.KEY]) == 4 * 2
    stored = load_file(tmp_path / "whole" / "pytorch" / "model.safetensors")
    for i, layer in enumerate(saved[blocks.KEY]):
        assert stored[f"bert.encoder.layer.{i}.output.dense.weight"].shape == (32, layer["columns"])


@divided
@pytest.mark.thorough
@pytest.mark.parametrize("method", ["gates", "taylor"])
@pytest.mark.parametrize("prepared", [QA], indirect=True)
def test_divided_steps_of_a_run_that_prunes_too(
    forks: Forks, whole: Whole, prepared: Path, tmp_path: Path, how: str, batch: int, accumulation: int, method: str
) -> None:
    """Nearly the same losses, and nearly all gates: two blocks that are worth almost the same may change places."""
    both = {"apply_pruning": "true", "pruning_ratio": 0.5, "pruning_method": method, "eval_steps": STEPS}
    undivided, divided_words = whole(**both), partial(words, prepared, **both)
    one, other = whole_and_divided(forks, undivided, divided_words, tmp_path, how, batch, accumulation)
    assert other.losses == pytest.approx(one.losses, abs=2e-3)
    all_at_once, parts = weights(undivided), weights(tmp_path / "divided")
    gates, others = (
        torch.cat([folder[name] for name in sorted(folder) if name.endswith(".gates")])
        for folder in (all_at_once, parts)
    )
    assert (gates == 0).any() and (gates != others).float().mean() <= 0.03


@pytest.mark.parametrize("pruned", [{}, {"apply_pruning": "true", "pruning_ratio": 0.5, "pruning_method": "taylor"}])
@pytest.mark.parametrize("family", ["distilbert", *(pytest.param(name, marks=thorough) for name in OTHERS)])
def test_families(family: str, pruned: dict[str, Any], tmp_path: Path) -> None:
    """With a teacher, bf16, and layers that are computed again; pruned or not."""
    (tmp_path / "tiny").mkdir()
    prepare(tmp_path, build_family(family, tmp_path / "tiny"), TC, (48, 12, 12))
    run.main(finetune_words(tmp_path, tmp_path / "teacher", max_steps=2, per_device_train_batch_size=8))
    again = str(family != "mpnet").lower()  # transformers can't with it
    given = {**ROUNDED, "teacher_model_path": tmp_path / "teacher" / "pytorch", "distillation_weight": 0.9}
    given |= {"precision": "bf16", "gradient_checkpointing": again, "per_device_train_batch_size": 8}
    run.main(finetune_words(tmp_path, tmp_path / "student", **given, **pruned))
    stored = json.loads((tmp_path / "student" / "pytorch" / "config.json").read_text())
    assert all(low < 0 < high for low, high in stored[fake_quantisation.KEY].values())
    assert (blocks.KEY in stored) == bool(pruned)
