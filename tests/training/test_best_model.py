"""Which model is kept, when training stops, and what a resumed run does, on evaluations whose scores are made up.

Everything but the scores is real: first, best and last evaluation differ, so that a wrong direction is seen.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import preprocess, run
from finetune.core.errors import ModelError, ParameterError
from finetune.models.stored.sums import SUMS
from finetune.results import saving
from finetune.training import checkpoints as checkpoint_files
from finetune.training import trainer
from tests.conftest import finetune_words, prepare, sample_rows, write_jsonl

pytestmark = pytest.mark.slow
# The best is the third of six. The same for both: what is best for one direction is worst for the other.
SCORES = {"loss": [0.5, 0.4, 0.1, 0.3, 0.2, 0.6], "f1": [0.5, 0.6, 0.9, 0.7, 0.8, 0.4]}
BEST, LAST = 3, 6
GIVEN = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 1e-3,
    "evaluation_strategy": "steps",
    "eval_steps": 1,
    "max_steps": LAST,
}
Train = Callable[..., str]
Begin = Callable[..., None]


@pytest.fixture
def train(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """Run with the made-up scores; what it says."""
    trainers: list[Any] = []
    predict, init = trainer.predict, trainer.FinetuneTrainer.__init__

    def at_step(metric: str) -> float:
        return SCORES[metric][trainers[-1].state.global_step - 1]

    def scored(*arguments: Any, **keywords: Any) -> Any:
        return predict(*arguments, **keywords)[0], at_step("loss")

    def begin(trainer: Any, *, task: Any, **keywords: Any) -> None:
        trainers.append(trainer)

        def metrics(*arguments: Any) -> dict[str, float]:
            return {**task.scoring.metrics(*arguments), "f1": at_step("f1")}

        init(trainer, task=replace(task, scoring=replace(task.scoring, metrics=metrics)), **keywords)

    monkeypatch.setattr(trainer, "predict", scored)
    monkeypatch.setattr(trainer.FinetuneTrainer, "__init__", begin)

    def trained(name: str, **given: Any) -> str:
        folders = {"preprocess_output", "model_selector_output"} & given.keys()
        words = finetune_words(prepared, tmp_path / name, **{**GIVEN, **{k: given[k] for k in given.keys() - folders}})
        for folder in folders:
            words[words.index(f"--{folder}") + 1] = str(given[folder])
        run.main(words)
        return capsys.readouterr().out

    return trained


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What was given to runs that have ended -> where they lie."""
    return {}


@pytest.fixture
def begun(train: Train, tmp_path: Path, ended: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Begin:
    """Leave a run with these values in the folder `run`, for another to go on from: a copy, but the first time."""

    def begin(**given: Any) -> None:
        if (key := json.dumps(given, sort_keys=True)) not in ended:
            train("run", **given)
            ended[key] = shutil.copytree(tmp_path / "run", tmp_path_factory.mktemp("ended") / "run")
        else:
            shutil.copytree(ended[key], tmp_path / "run")

    return begin


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in (folder / "pytorch").glob("checkpoint-*"))


def same(one: Path, other: Path, file: str = "model.safetensors") -> bool:
    """The weights of two folders, bit for bit."""
    first, second = load_file(one / file), load_file(other / file)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def steps_shown(said: str) -> list[int]:
    return [int(step) for step in re.findall(r"^step (\d+)/.*validation loss", said, flags=re.MULTILINE)]


@pytest.mark.parametrize("metric", SCORES)
def test_the_best_is_kept(train: Train, tmp_path: Path, metric: str) -> None:
    said = train("all", metric_for_best_model=metric)
    assert f"best at step {BEST}: {metric} {SCORES[metric][BEST - 1]:.4f}" in said
    assert steps_shown(said) == checkpoints(tmp_path / "all") == [1, 2, 3, 4, 5, 6]
    folder = tmp_path / "all" / "pytorch"
    assert same(folder, folder / f"checkpoint-{BEST}")
    assert not any(same(folder, folder / f"checkpoint-{step}") for step in (1, LAST))

    limit, left = {"loss": (1, [BEST]), "f1": (2, [BEST, LAST])}[metric]
    train("limited", metric_for_best_model=metric, save_total_limit=limit)
    assert checkpoints(tmp_path / "limited") == left
    assert same(tmp_path / "limited" / "pytorch", folder)


def test_a_run_that_is_cut_off_while_it_saves_trains_nothing_again(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With save_total_limit 1 too, which leaves the best checkpoint alone once the model is saved."""

    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saving, "save_pytorch", cut_off)
        train("run", save_total_limit=1)
    assert checkpoints(tmp_path / "run") == [BEST, LAST]
    said = train("run", save_total_limit=1, resume_from_checkpoint="true")
    assert "nothing is left to train" in said and checkpoints(tmp_path / "run") == [BEST]


def test_the_best_adapter_is_kept(train: Train, tmp_path: Path) -> None:
    """Its head too; and a run that is resumed after its end takes the same."""
    adapter, lora = "adapter_model.safetensors", {"apply_lora": "true", "merge_lora_weights": "false"}
    train("run", **lora)
    folder = tmp_path / "run" / "pytorch"
    assert same(folder, folder / f"checkpoint-{BEST}", adapter)
    for step in (1, LAST):
        found, best = load_file(folder / f"checkpoint-{step}" / adapter), load_file(folder / adapter)
        assert not any(found[name].equal(best[name]) for name in found)
    (folder / adapter).rename(tmp_path / adapter)
    assert "nothing is left to train" in train("run", **lora, resume_from_checkpoint="true")
    assert same(folder, tmp_path, adapter)


STOPS = [(1, 0, 4), (2, 0, 5), (3, 0, 6), (1, 0.15, 2), (2, 0.15, 5)]


@pytest.mark.parametrize(
    ("patience", "threshold", "last", "metric"),
    [
        pytest.param(*stop, metric, marks=[] if i % 2 == j else [pytest.mark.thorough])  # both directions in turn
        for i, stop in enumerate(STOPS)
        for j, metric in enumerate(SCORES)
    ],
)
def test_it_stops_early(train: Train, tmp_path: Path, patience: int, threshold: float, last: int, metric: str) -> None:
    """0.1 better in the second evaluation, and at least 0.3 in the third, is best."""
    given = {"apply_early_stopping": "true", "early_stopping_patience": patience, "early_stopping_threshold": threshold}
    said = train("run", metric_for_best_model=metric, **given)
    assert steps_shown(said) == list(range(1, last + 1))
    assert f"best at step {min(BEST, last)}: " in said


def test_resumed_after_an_early_stop(train: Train, tmp_path: Path) -> None:
    given = {"apply_early_stopping": "true"}
    train("run", **given)
    folder = tmp_path / "run" / "pytorch"
    kept = load_file(folder / "model.safetensors")
    said = train("run", **given, resume_from_checkpoint="true")
    why = "training had stopped early, after 1 evaluations without improvement"
    assert f"nothing is left to train after checkpoint-4: {why}" in said and not steps_shown(said)
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(kept[name], again[name]) for name in kept) and checkpoints(tmp_path / "run") == [1, 2, 3, 4]

    said = train("run", **given, early_stopping_patience=2, resume_from_checkpoint="true")
    assert steps_shown(said) == [5] and f"best at step {BEST}: " in said  # two without improvement: 4 and 5


def test_resumed_after_the_last_step(train: Train, begun: Begin, tmp_path: Path) -> None:
    begun()
    speed = json.loads((tmp_path / "run" / "pytorch" / "training.json").read_text())["speed"]
    assert speed["train_samples_per_second"] > 0
    said = train("run", resume_from_checkpoint="true")
    assert f"nothing is left to train after checkpoint-{LAST}: it is the last of {LAST} steps" in said
    assert not steps_shown(said) and checkpoints(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    assert same(tmp_path / "run" / "pytorch", tmp_path / "run" / "pytorch" / f"checkpoint-{BEST}")
    assert json.loads((tmp_path / "run" / "pytorch" / "training.json").read_text())["speed"] == speed


def test_resumed_with_the_best_of_before(train: Train, begun: Begin, tmp_path: Path) -> None:
    """The best evaluation was before the checkpoint that is gone on from."""
    begun()
    for step in (5, 6):
        (tmp_path / "run" / "pytorch" / f"checkpoint-{step}").rename(tmp_path / f"{step}")
    said = train("run", resume_from_checkpoint="true")
    assert steps_shown(said) == [5, 6] and f"best at step {BEST}: " in said
    assert same(tmp_path / "run" / "pytorch" / "checkpoint-6", tmp_path / "6")


CHANGED = {
    "optim": "adafactor",
    "learning_rate": 0.002,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "lr_scheduler_type": "cosine",
    "seed": 7,
    "metric_for_best_model": "f1",
    "apply_lora": "true",
    "precision": "bf16",
    "max_steps": 5,
    "gradient_accumulation_steps": 2,
}


def test_resume_that_would_mean_nothing_is_refused_with_the_list(train: Train, begun: Begin) -> None:
    begun()
    with pytest.raises(ParameterError) as raised:
        train("run", **CHANGED, resume_from_checkpoint="true")
    told = "\n".join(fault.what for fault in raised.value.faults)
    assert "is of a run of 6 steps, this one has 5" in told and "16 windows in a step, this run has 32" in told
    named = re.findall(r"was made with (\w+) \S+, not ", told)
    assert set(named) == CHANGED.keys() - {"max_steps", "gradient_accumulation_steps"}
    assert {fault.fix for fault in raised.value.faults} >= {"--learning_rate 0.001", "--optim adamw_hf", "--seed 42"}


def test_killed_in_the_evaluation_of_an_epoch(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """save_steps leaves no complete checkpoint that the evaluation of its own step isn't part of."""
    whole = {"evaluation_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 38}
    given = {**whole, "save_steps": 2}
    train("unbroken", **given)
    evaluate = trainer.FinetuneTrainer.evaluate

    def killed(trainer: Any, *arguments: Any, **keywords: Any) -> Any:
        if trainer.state.global_step == 6:
            raise KeyboardInterrupt
        return evaluate(trainer, *arguments, **keywords)

    monkeypatch.setattr(trainer.FinetuneTrainer, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train("run", **given)
    assert checkpoints(tmp_path / "run") == [2, 3, 4]
    monkeypatch.setattr(trainer.FinetuneTrainer, "evaluate", evaluate)
    said = train("run", **given, resume_from_checkpoint="true")
    said = said[said.index("going on from checkpoint-4") :]
    assert steps_shown(said) == [6] and f"best at step {BEST}: " in said
    assert same(tmp_path / "run" / "pytorch", tmp_path / "unbroken" / "pytorch")


def test_a_checkpoint_is_not_whole_while_it_is_written_again(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("run", max_steps=3)
    last = tmp_path / "run" / "pytorch" / "checkpoint-3"
    whole: list[bool] = []
    monkeypatch.setattr(checkpoint_files, "newest_complete", lambda folder: folder / "checkpoint-2")
    save = trainer.Trainer._save_checkpoint

    def watched(*arguments: Any) -> None:
        whole.append((last / "complete").exists())
        save(*arguments)

    monkeypatch.setattr(trainer.Trainer, "_save_checkpoint", watched)
    assert (last / "complete").is_file()
    train("run", max_steps=3, resume_from_checkpoint="true")
    assert whole == [False]


def test_checkpoint_of_another_version(train: Train, begun: Begin, tmp_path: Path) -> None:
    begun(max_steps=1)
    (tmp_path / "run" / "pytorch" / "checkpoint-1" / "complete").write_text('{"global_batch": 16, "windows": 113}')
    with pytest.raises(
        ParameterError, match=r"checkpoint-1 was left by another version[\s\S]*--resume_from_checkpoint false"
    ):
        train("run", resume_from_checkpoint="true")


def test_resume_that_runs_out_of_memory(train: Train, begun: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller batch would be another step: said, with what helps."""
    given = {"auto_find_batch_size": "true"}
    begun(**given, max_steps=3, lr_scheduler_type="constant")

    def full(*arguments: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(trainer.FinetuneTrainer, "training_step", full)
    with pytest.raises(ModelError, match=r"memory runs out with 16 windows[\s\S]*fix: --keep_global_batch_size true"):
        train("run", **given, lr_scheduler_type="constant", resume_from_checkpoint="true")


def test_out_of_memory_after_some_checkpoints(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the try that is given up are taken away; nothing of it is left in the next."""
    train("told", per_device_train_batch_size=8)
    step, tries = trainer.FinetuneTrainer.training_step, []

    def full(trainer: Any, *arguments: Any) -> Any:
        if trainer.state.global_step == 3 and trainer.args.per_device_train_batch_size == 16:
            tries.append(checkpoints(tmp_path / "run"))
            raise RuntimeError("could not create a primitive")
        return step(trainer, *arguments)

    monkeypatch.setattr(trainer.FinetuneTrainer, "training_step", full)
    said = train("run", auto_find_batch_size="true", save_total_limit=2)
    assert tries == [[2, 3]]
    assert "out of memory with per_device_train_batch_size 16; starting again with 8\n" in said
    assert "earlier run" not in said and checkpoints(tmp_path / "run") == [BEST, LAST]
    for step_of in (BEST, LAST):
        name = f"checkpoint-{step_of}"
        assert same(tmp_path / "run" / "pytorch" / name, tmp_path / "told" / "pytorch" / name)


def test_a_batch_that_is_typed_anew_is_not_replaced_by_the_one_found(train: Train, begun: Begin) -> None:
    given = {"auto_find_batch_size": "true", "lr_scheduler_type": "constant"}
    begun(**given, max_steps=3)
    halves = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    said = train("run", **given, **halves, resume_from_checkpoint="true")
    assert "auto_find_batch_size: 8 fits into memory" in said and "did not fit" not in said


def test_resume_on_other_data_or_weights_is_refused(train: Train, begun: Begin, prepared: Path, tmp_path: Path) -> None:
    begun()
    words = ["--task", "question_answering", "--model_selector_output", str(prepared / "model")]
    for split in ("train", "validation", "test"):
        rows = sample_rows("train")[1:49] if split == "train" else sample_rows("train")[:12]
        words += [f"--{split}_file_path", str(write_jsonl(tmp_path / f"{split}.jsonl", rows))]
    words += ["--max_seq_length", "128", "--doc_stride", "32", "--output_dir", str(tmp_path / "data")]
    preprocess.main(words)
    shutil.copytree(prepared / "model", tmp_path / "model")
    file = tmp_path / "model" / "model" / "model.safetensors"
    (file.parent / SUMS).unlink()
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ParameterError, match="began with other weights than those of model_selector_output"):
        train("run", model_selector_output=tmp_path / "model", resume_from_checkpoint="true")
    with pytest.raises(
        ParameterError, match=r"training windows, this run has|on other rows than those of preprocess_output"
    ):
        train("run", preprocess_output=tmp_path / "data", resume_from_checkpoint="true")


def test_data_encoded_once_more_are_the_same(train: Train, begun: Begin, prepared: Path, tmp_path: Path) -> None:
    begun(max_steps=3, lr_scheduler_type="constant")
    made = prepare(
        tmp_path,
        Path(json.loads((prepared / "model" / "model_selector_args.json").read_text())["source_name"]),
        max_seq_length=128,
        doc_stride=32,
    )
    again = {"preprocess_output": made / "data", "model_selector_output": made / "model"}
    said = train("run", lr_scheduler_type="constant", **again, resume_from_checkpoint="true")
    assert steps_shown(said) == [4, 5, 6]


def test_resume_of_a_run_of_more_processes(train: Train, tmp_path: Path) -> None:
    train("run", max_steps=4)
    marker = tmp_path / "run" / "pytorch" / "checkpoint-4" / "complete"
    values = json.loads(marker.read_text())
    del values["marker"]  # the checksum of the rest
    marker.write_text(json.dumps(values).replace('"processes": 1', '"processes": 2'))
    said = train("run", max_steps=4, resume_from_checkpoint="true")
    assert "note: checkpoint-4 was left by 2 processes, this run has 1: dropout draws other numbers" in said


def test_resume_with_another_cadence_is_taken(train: Train, begun: Begin) -> None:
    begun()
    free = {"save_total_limit": 2, "per_device_eval_batch_size": 3, "logging_strategy": "steps", "logging_steps": 1}
    train("run", **free, dataloader_num_workers=1, max_grad_norm=0.5, resume_from_checkpoint="true")


def test_more_steps_at_a_constant_rate(train: Train, begun: Begin) -> None:
    """No part of the schedule depends on how many there are."""
    constant = {"lr_scheduler_type": "constant"}
    begun(**constant, max_steps=3)
    said = train("run", **constant, max_steps=5, resume_from_checkpoint="true")
    assert steps_shown(said) == [4, 5]
