"""Runs with ZeRO: the model that is saved, the best one, a run that goes on, adapters, 16 bits, offloading."""

import functools
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.core.errors import ParameterError, StoppedError
from tests.conftest import finetune_words
from tests.forking import Forks
from tests.launching import Launched, launch, stopping

# Only asked whether it is there: its import takes seconds of each worker.
missing = pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed: make test-distributed")
pytestmark = [pytest.mark.slow, pytest.mark.distributed, missing]
thorough = pytest.mark.thorough
STEPS = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "max_steps": 6,
    "learning_rate": 1e-3,
    "evaluation_strategy": "steps",
    "eval_steps": 2,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "apply_deepspeed": "true",
}


def words(prepared: Path, output: Path, **parameters: Any) -> list[str]:
    return finetune_words(prepared, output, **{**STEPS, **parameters})


@pytest.fixture(scope="module")
def forks(forks_with_deepspeed: Forks) -> Forks:
    return forks_with_deepspeed


def ran(forks: Forks, folder: Path, prepared: Path, processes: int = 2, **parameters: Any) -> Launched:
    how = "azure" if processes > 1 else "alone"
    run = launch(folder, words(prepared, folder, **parameters), how, forks=forks)
    assert set(run.codes()) == {0}, run.said()
    assert f"put together from {processes} processes" in run.said()
    return run


def in_32_bits(checkpoint: Path) -> dict[str, torch.Tensor]:
    """By DeepSpeed's own tool."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    found: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    return found


def same(saved: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return saved.keys() == wanted.keys() and all(tensor.equal(wanted[name]) for name, tensor in saved.items())


BEST = {"metric_for_best_model": "exact"}
Whole = Callable[[int, dict[str, Any]], tuple[Path, Launched]]


@pytest.fixture(scope="module")
def whole(forks: Forks, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The folder of a run that nothing befell, made once for each stage and parameters; what it printed."""

    @functools.cache
    def made(stage: int, given: str) -> tuple[Path, Launched]:
        folder = tmp_path_factory.mktemp("whole")
        return folder, ran(forks, folder, prepared, **json.loads(given), deepspeed_stage=stage, **BEST)

    return lambda stage, given: made(stage, json.dumps(given))


@thorough
@pytest.mark.parametrize(
    ("stage", "given"),
    [
        (3, {"precision": "bf16"}),
        (2, {"precision": "bf16"}),
        (2, {}),
        (3, {"optim": "adafactor"}),
        (2, {"gradient_checkpointing": "true"}),
        (3, {"gradient_checkpointing": "true"}),
    ],
)
def test_the_best_is_saved_whole_and_in_32_bits(
    forks: Forks, prepared: Path, whole: Whole, stage: int, given: dict[str, Any]
) -> None:
    """So few steps give no exact answer: the best is the first of those that are evaluated."""
    output, run = whole(stage, given)
    folder = output / "pytorch"
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    best = folder / f"checkpoint-{state['best_global_step']}"
    assert best.name != "checkpoint-6", "the test needs a best that is not the last"
    weights_sharded = bool([*best.glob("global_step*/zero_pp_rank_1_mp_rank_00_model_states.pt")])
    assert weights_sharded == (stage == 3) and [*best.glob("global_step*/*zero_pp_rank_1*optim_states.pt")]
    saved = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert same(saved, in_32_bits(best)) and not same(saved, in_32_bits(folder / "checkpoint-6"))
    assert "both loaded afresh and equal" in run.said()

    (folder / "model.safetensors").unlink()
    again = ran(forks, output, prepared, **given, deepspeed_stage=stage, **BEST, resume_from_checkpoint="true")
    assert "nothing is left to train" in again.said() and same(load_file(folder / "model.safetensors"), saved)


@thorough
@pytest.mark.parametrize(("stage", "given"), [(3, {"precision": "bf16"}), (2, {}), (3, {})])
def test_a_run_goes_on(
    forks: Forks, prepared: Path, tmp_path: Path, whole: Whole, stage: int, given: dict[str, Any]
) -> None:
    unbroken, _ = whole(stage, given)
    given, cut = {**given, "deepspeed_stage": stage, **BEST}, tmp_path / "cut"
    run = launch(cut, words(prepared, cut, **given), code=("-c", stopping(3)), forks=forks)
    assert set(run.codes()) == {StoppedError.exit_code}, run.said()

    alone = words(prepared, cut, **given, gradient_accumulation_steps=2, resume_from_checkpoint="true")
    other = launch(cut, alone, "alone", forks=forks)
    assert other.codes() == [ParameterError.exit_code]
    assert f"sharded by ZeRO stage {stage}, processes 2" in other.said() and "processes 1" in other.said()
    weights_alone(forks, other.said(), tmp_path)

    assert "going on from checkpoint-" in ran(forks, cut, prepared, **given, resume_from_checkpoint="true").said()
    weights = [in_32_bits(folder / "pytorch" / "checkpoint-6") for folder in (unbroken, cut)]
    assert same(*weights)


def weights_alone(forks: Forks, said: str, folder: Path) -> None:
    """What is offered instead: the command puts the weights together, for any number of processes."""
    command = re.search(r"`python (-m finetune.model_selector .*) --output_dir FOLDER`", said)
    assert command is not None, said
    module, name, *given = shlex.split(command[1])
    out = folder / "from_shards"
    imported = launch(out, [*given, "--output_dir", str(out)], "alone", code=(module, name), forks=forks)
    assert imported.codes() == [0], imported.said()
    checkpoint = Path(given[given.index("--pytorch_model_path") + 1])
    assert same(load_file(out / "model" / "model.safetensors"), in_32_bits(checkpoint))
    assert json.loads((out / "model_selector_args.json").read_text())["new_weights"] == []


@pytest.mark.parametrize(
    ("stage", "merge", "precision"),
    [
        pytest.param(3, "true", "bf16", marks=thorough),
        pytest.param(3, "false", "32", marks=thorough),
        pytest.param(2, "true", "32", marks=thorough),
        pytest.param(2, "true", "bf16", marks=thorough),
        pytest.param(2, "false", "bf16", marks=thorough),
    ],
)
def test_adapters(forks: Forks, prepared: Path, tmp_path: Path, stage: int, merge: str, precision: str) -> None:
    """The frozen weights are those that were imported, bit for bit, though they were computed with in 16 bits."""
    given = {"deepspeed_stage": stage, "apply_lora": "true", "merge_lora_weights": merge, "precision": precision}
    ran(forks, tmp_path, prepared, **given, max_steps=2)
    folder, imported = tmp_path / "pytorch", load_file(prepared / "model" / "model" / "model.safetensors")
    if merge == "true":
        saved = load_file(folder / "model.safetensors")
        plain = {f"bert.{name}": tensor for name, tensor in imported.items() if ".query." not in name}
        frozen = [name for name in plain if name in saved and ".value." not in name]
        assert len(frozen) > 20 and all(saved[name].equal(plain[name]) for name in frozen)
        assert not saved["bert.encoder.layer.0.attention.self.query.weight"].equal(
            imported["encoder.layer.0.attention.self.query.weight"]
        )
        return
    adapter = load_file(folder / "adapter_model.safetensors")
    assert any("qa_outputs" in name for name in adapter)
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    assert same(load_file(folder / "base_model" / "model.safetensors"), imported)


UNEVEN = """
from dataclasses import replace
from finetune import run
from finetune.core import launch, process
from finetune.tasks.generation import writing

whole, told = writing.generation_config, []

def uneven(model, state, never_empty=False):
    # Each batch of a process ends after another number of tokens, the first of the main one after 2.
    told.append(0)
    return whole(model, replace(state, max_target_length=2 if (len(told) + launch.rank()) % 2 else 40))

writing.generation_config = uneven
process.run_main(run.main)
"""


@thorough
@pytest.mark.parametrize("beams", [1, 2])
def test_processes_that_write_texts_of_other_lengths(
    forks: Forks, prepared_pairs: Path, tmp_path: Path, beams: int
) -> None:
    """Each forward pass of ZeRO-3 gathers weights from all: nobody may wait for one who has written its texts."""
    prepared = prepared_pairs
    if beams > 1:
        prepared = shutil.copytree(prepared_pairs, tmp_path / "beams")
        file = prepared / "data" / "preprocess.json"
        values = json.loads(file.read_text())
        values["state"]["num_beams"] = beams
        file.write_text(json.dumps(values))
    given = words(prepared, tmp_path, deepspeed_stage=3, max_steps=2, per_device_eval_batch_size=1)
    run = launch(tmp_path, given, code=("-c", UNEVEN), forks=forks)
    assert set(run.codes()) == {0}, run.said()
    log = json.loads((tmp_path / "pytorch" / "training.json").read_text())["log"]
    evaluation = next(entry for entry in log if "eval_loss" in entry)
    assert evaluation["eval_gen_len"] == 21  # half of the texts 2, half 40: nothing was cut off or missed


@thorough
@pytest.mark.parametrize("stage", [2, 3])
def test_translation_goes_on(forks: Forks, prepared_pairs: Path, tmp_path: Path, stage: int) -> None:
    """With an evaluation by generation every second step: the same as without an engine, and the same if it was cut."""
    given = {"deepspeed_stage": stage}
    ran(forks, tmp_path / "whole", prepared_pairs, **given)
    without = words(prepared_pairs, tmp_path / "plain", apply_deepspeed="false")
    plain = launch(tmp_path / "plain", without, forks=forks)
    assert set(plain.codes()) == {0}, plain.said()
    losses, others = (evaluations(tmp_path / name) for name in ("whole", "plain"))
    assert len(losses) == 3 and losses == pytest.approx(others, rel=1e-4)

    cut = tmp_path / "cut"
    run = launch(cut, words(prepared_pairs, cut, **given), code=("-c", stopping(3)), forks=forks)
    assert set(run.codes()) == {StoppedError.exit_code}, run.said()
    assert "going on from" in ran(forks, cut, prepared_pairs, **given, resume_from_checkpoint="true").said()
    weights = [load_file(folder / "pytorch" / "model.safetensors") for folder in (tmp_path / "whole", cut)]
    assert same(*weights)


def evaluations(folder: Path) -> list[float]:
    log = json.loads((folder / "pytorch" / "training.json").read_text())["log"]
    return [entry["eval_loss"] for entry in log if "eval_loss" in entry]


@thorough
@pytest.mark.parametrize("stage", [2, 3])
def test_the_optimizer_on_the_cpu(forks: Forks, prepared: Path, tmp_path: Path, stage: int) -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no g++ to compile DeepSpeed's Adam with")
    config = tmp_path / "offload.json"
    config.write_text(
        json.dumps({"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu", "pin_memory": False}}})
    )
    ran(forks, tmp_path, prepared, deepspeed=config)


@thorough
def test_optimizer_and_scheduler_of_a_config(forks: Forks, prepared: Path, tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no g++ to compile DeepSpeed's Adam with")
    config = {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 3e-4, "warmup_num_steps": 2}},
    }
    (tmp_path / "blocks.json").write_text(json.dumps(config))
    run = ran(forks, tmp_path, prepared, 1, deepspeed=tmp_path / "blocks.json")
    assert "optim: AdamW (the optimizer block of the deepspeed config wins)" in run.said()
    assert run.said().count("\noptim: ") == 1
    assert "step 6/6" in run.said() and "learning rate 3.00e-04" in run.said()


def test_a_stale_lock_does_not_hold_up_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One that is young is waited for, until it is gone or old; that of a build that goes on is left to it."""
    import subprocess
    import threading
    import time

    from finetune.core import timing
    from finetune.distributed import zero_engine

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(timing, "STALE", 4.0)
    locks = {name: tmp_path / "py311_cpu" / name / "lock" for name in ("stale", "done", "young", "building")}
    for name, lock in locks.items():
        lock.parent.mkdir(parents=True)
        lock.touch()
        if name in ("stale", "building"):
            os.utime(lock, (time.time() - 600, time.time() - 600))
    builder = subprocess.Popen(["sleep", "60"], cwd=locks["building"].parent)
    threading.Timer(1, locks["done"].unlink).start()
    try:
        zero_engine.clear_stale_locks()
    finally:
        builder.kill()
        builder.wait()
    assert [name for name, lock in locks.items() if lock.exists()] == ["building"]
    said = capsys.readouterr().out.splitlines()
    assert sorted(said) == sorted(
        f"removed {locks[name]}, left by a build that was killed" for name in ("stale", "young")
    )
