"""Settings that must not change the weights: the same bit for bit, under dropout, through the real command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune import run
from finetune.core.errors import StoppedError
from tests.conftest import finetune_words, prepare
from tests.forking import Forks
from tests.launching import launch, one_thread, stopping

pytestmark = pytest.mark.slow
STEPS = 6
SHARED = {"max_steps": STEPS, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
BY_STEPS = {"evaluation_strategy": "steps"}
SETTINGS: dict[str, dict[str, Any]] = {
    "again": {},
    "two workers": {"dataloader_num_workers": 2},
    "evaluated after every step": {**BY_STEPS, "eval_steps": 1},
    "evaluated after every other step": {**BY_STEPS, "eval_steps": 2},
    "evaluated after every step by workers": {**BY_STEPS, "eval_steps": 1, "dataloader_num_workers": 2},
    "evaluated in small batches": {**BY_STEPS, "eval_steps": 2, "per_device_eval_batch_size": 3},
    "logged after every step": {"logging_strategy": "steps", "logging_steps": 1},
    "saved after every other step": {"save_steps": 2},
    "one checkpoint kept": {**BY_STEPS, "eval_steps": 2, "save_total_limit": 1},
    "speed without the first steps": {"throughput_warmup_steps": 2},
    "chosen by f1": {"metric_for_best_model": "f1"},
    "deterministic": {"enable_full_determinism": "true"},
    "deterministic with two workers": {"enable_full_determinism": "true", "dataloader_num_workers": 2},
    "deterministic, evaluated after every step": {"enable_full_determinism": "true", **BY_STEPS, "eval_steps": 1},
}


TASKS = ("question_answering", "token_classification")
TWO_AT_ONCE = {"evaluated after every step by workers", "one checkpoint kept", "deterministic with two workers"}
TWO_AT_ONCE |= {"deterministic, evaluated after every step", "evaluated after every other step"}


def marks(task: str, name: str) -> list[pytest.MarkDecorator]:
    """How a setting draws its numbers has nothing to do with what the rows are: those of few windows are enough."""
    usual = name == "again" or (task == "token_classification" and name not in TWO_AT_ONCE)
    return [] if usual else [pytest.mark.thorough]


CELLS = [pytest.param(task, name, marks=marks(task, name)) for task in TASKS for name in SETTINGS]


@pytest.fixture(scope="module", params=TASKS)
def prepared(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"), tiny_model, request.param, (48, 12, 12))


def weights(prepared: Path, output: Path, **given: Any) -> dict[str, torch.Tensor]:
    """After the last step."""
    try:
        run.main(finetune_words(prepared, output, **SHARED, **given))
    finally:
        torch.use_deterministic_algorithms(False)
    last = output / "pytorch" / f"checkpoint-{STEPS}"
    folder = last if last.is_dir() else output / "pytorch"
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


@pytest.fixture(scope="module")
def plain(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights(prepared, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(("prepared", "name"), CELLS, indirect=["prepared"])
def test_same_weights(prepared: Path, tmp_path: Path, plain: dict[str, torch.Tensor], name: str) -> None:
    found = weights(prepared, tmp_path, **SETTINGS[name])
    assert found.keys() == plain.keys()
    assert [key for key in found if not torch.equal(found[key], plain[key])] == []


def test_another_seed_gives_others(prepared: Path, tmp_path: Path, plain: dict[str, torch.Tensor]) -> None:
    found = weights(prepared, tmp_path, seed=7)
    assert not any(torch.equal(found[key], plain[key]) for key in found if key.endswith("query.weight"))


@pytest.mark.parametrize("prepared", ["question_answering"], indirect=True)
def test_a_run_without_padding_goes_on(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    """In the middle of an epoch of batches of so many tokens."""
    given = {"padding_free": "always", "max_tokens_per_batch": 384}
    with one_thread():
        whole = weights(prepared, tmp_path / "whole", **given)
    words = finetune_words(prepared, tmp_path / "broken", **SHARED, **given, resume_from_checkpoint="true")
    launched = launch(tmp_path, words, "alone", 1, ("-c", stopping(STEPS - 2)), forks=forks)
    assert set(launched.codes()) == {StoppedError.exit_code}, launched.said()
    with one_thread():
        goes_on = weights(prepared, tmp_path / "broken", **given, resume_from_checkpoint="true")
    assert goes_on.keys() == whole.keys() and all(torch.equal(goes_on[key], whole[key]) for key in whole)
