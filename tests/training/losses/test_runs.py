"""Runs with a row whose loss is large, isn't finite, or has a gradient that isn't: alone and in two processes."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file, save_file

from finetune import run
from finetune.core.errors import ModelError
from finetune.data.sampler import LengthGroupedSampler, window_lengths
from finetune.training import attempts
from finetune.training.losses.verdict import Record
from tests.conftest import finetune_words
from tests.forking import Forks
from tests.launching import Launched, launch

pytestmark = pytest.mark.slow
BATCH = 4  # windows of a step
HARMED = """
import dataclasses, json, os
import torch
from finetune import run
from finetune.core import process
from finetune.training import attempts
from finetune.training.losses.verdict import Record
from finetune.training.trainer import FinetuneTrainer

begin, window, harm = FinetuneTrainer.__init__, torch.tensor(json.loads(os.environ["WINDOW"])), os.environ["HARM"]

def begun(trainer, **given):
    begin(trainer, **given)
    objective = trainer.training_objective

    def loss(outputs, batch):
        losses, ids = objective.loss(outputs, batch), batch["input_ids"][:, :len(window)]
        bad = (ids == window).all(1) if ids.shape[1] == len(window) else torch.zeros(len(ids), dtype=torch.bool)
        if not bad.any() or harm == "none":
            return losses
        if harm == "gradient":  # that of a root at 0 is infinite, and infinity times 0 is no number
            return losses + bad * torch.sqrt(0 * outputs["start_logits"].sum())
        return losses * torch.where(bad, float(harm), 1.0)

    trainer.training_objective = dataclasses.replace(objective, loss=loss)

FinetuneTrainer.__init__ = begun
if "LEFT_OUT" in os.environ:
    attempts.Record = lambda: Record(left_out=[int(step) for step in os.environ["LEFT_OUT"].split()])
process.run_main(run.main)
"""


class Row(NamedTuple):
    """A training window."""

    ids: list[int]
    step: int
    late: bool  # in the second half of the step: in two processes, the second one's
    words: str  # of its text, as it is named


@pytest.fixture(scope="module")
def rows(prepared: Path) -> list[Row]:
    """In the order of the steps."""
    from transformers import AutoTokenizer

    train = load_from_disk(str(prepared / "data" / "train" / "windows"))
    tokenizer = AutoTokenizer.from_pretrained(prepared / "data" / "tokenizer")
    found = []
    for place, i in enumerate(LengthGroupedSampler(window_lengths(train), BATCH, 42)):
        ids = train[i]["input_ids"]
        words = tokenizer.decode(ids, skip_special_tokens=True)[:20]
        found.append(Row(ids, place // BATCH + 1, place % BATCH >= BATCH // 2, words))
    return found


def words(prepared: Path, output: Path, processes: int = 1, **given: Any) -> list[str]:
    steps = {"evaluation_strategy": "steps", "eval_steps": 12, "max_steps": 30, "learning_rate": 1e-3}
    logs = {"logging_strategy": "steps", "logging_steps": 1, "per_device_eval_batch_size": 16}
    batch = BATCH // processes
    return finetune_words(prepared, output, **{**steps, **logs, "per_device_train_batch_size": batch, **given})


def start(
    forks: Forks,
    prepared: Path,
    folder: Path,
    processes: int = 1,
    harm: str = "none",
    row: Row | None = None,
    **given: Any,
) -> Launched:
    """A run in which the loss of the row is harmed: multiplied, or with a gradient that is no number."""
    variables = {name: given.pop(name) for name in ("LEFT_OUT",) if name in given}
    variables |= {"HARM": harm, "WINDOW": json.dumps(row.ids if row else [-1])}
    argv = words(prepared, folder, processes, **given)
    how = "alone" if processes == 1 else "azure"
    return launch(folder, argv, how, processes, ("-c", HARMED), forks=forks, **variables)


def finished(launched: Launched) -> str:
    assert set(launched.codes()) == {0}, launched.said()
    return launched.said()


def weights(folder: Path, step: int) -> bytes:
    return (folder / "pytorch" / f"checkpoint-{step}" / "model.safetensors").read_bytes()


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in (folder / "pytorch").glob("checkpoint-*"))


def test_a_step_that_is_left_out_moves_no_weight(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its rows, not by momentum or decay; the steps after it do."""
    monkeypatch.setattr(attempts, "Record", lambda: Record(left_out=[2, 3]))
    run.main(words(prepared, tmp_path, max_steps=4, eval_steps=1, weight_decay=0.1))
    one, two, three, four = (weights(tmp_path, step) for step in (1, 2, 3, 4))
    assert one == two == three != four
    state = json.loads((tmp_path / "pytorch" / "checkpoint-4" / "trainer_state.json").read_text())
    logged = {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}
    assert logged[2] == logged[3] == 0 < min(logged[1], logged[4])
    assert len(state["stateful_callbacks"]["losses"]["before"]) == 2


def test_a_spike_is_left_out(forks: Forks, prepared: Path, rows: list[Row], tmp_path: Path) -> None:
    """The weights are those of a run that never saw the rows; killed after the spike and begun again, too."""
    row = next(row for row in rows if row.step == 26)
    given = {"harm": "100", "row": row, "loss_spike_threshold": 5}
    left_out = f"{row.step - 1} {row.step}"
    spiked = start(forks, prepared, tmp_path / "spiked", **given)
    killed = start(forks, prepared, tmp_path / "killed", **given)
    killed.until(lambda: f"step {row.step - 1}/30 " in killed.said().partition("loss spike: ")[2])
    killed.send(0, signal.SIGKILL)
    killed.codes()
    without = finished(start(forks, prepared, tmp_path / "without", LEFT_OUT=left_out))
    said = finished(spiked)
    assert "loss spike" not in without and said.count("loss spike: ") == 1
    line = next(line for line in said.splitlines() if line.startswith("loss spike: "))
    assert re.search(rf"the loss of step {row.step} is [\d.]+, [\d.]+ times the median of the {row.step - 1} ", line)
    assert f"rows of steps {row.step - 1} and {row.step} are left out" in line and row.words in line
    assert line.endswith("going on from checkpoint-24")
    assert weights(tmp_path / "spiked", 30) == weights(tmp_path / "without", 30)
    again = finished(start(forks, prepared, tmp_path / "killed", **given))  # the same command
    assert "this run was interrupted after checkpoint-24" in again
    assert weights(tmp_path / "killed", 30) == weights(tmp_path / "spiked", 30)
    stored = json.loads((tmp_path / "killed" / "pytorch" / "checkpoint-30" / "trainer_state.json").read_text())
    assert stored["stateful_callbacks"]["losses"]["left_out"] == [row.step - 1, row.step]


@pytest.mark.distributed
@pytest.mark.thorough
def test_processes_leave_out_the_same(forks: Forks, prepared: Path, rows: list[Row], tmp_path: Path) -> None:
    """Though the row is another one's than the main process', which decides."""
    row = next(row for row in rows if row.step == 4 and row.late)
    steps = {"eval_steps": 2, "max_steps": 6}
    said = finished(start(forks, prepared, tmp_path / "spiked", 2, "nan", row, loss_spike_threshold=5, **steps))
    finished(start(forks, prepared, tmp_path / "without", 2, LEFT_OUT="3 4", **steps))
    line = next(line for line in said.splitlines() if line.startswith("loss spike: "))
    assert f"the loss of step {row.step} is nan; rows of steps {row.step - 1} and {row.step} are" in line
    assert row.words in line and line.endswith("from checkpoint-2") and said.count("loss spike: ") == 1
    assert weights(tmp_path / "spiked", 6) == weights(tmp_path / "without", 6)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
@pytest.mark.parametrize("harm", ["nan", "gradient"])
def test_what_is_not_finite_is_never_saved(
    forks: Forks, prepared: Path, rows: list[Row], tmp_path: Path, harm: str, processes: int
) -> None:
    """Not though the checkpoint is due after that very step, and its loss is finite."""
    row = next(row for row in rows if row.step >= 3 and row.late)
    given = {"eval_steps": 1, "save_steps": row.step, "max_steps": row.step + 1}
    ended = start(forks, prepared, tmp_path, processes, harm, row, **given)
    assert set(ended.codes()) == {ModelError.exit_code}, ended.said()
    what = {"nan": "loss", "gradient": "norm of the gradient"}[harm]
    assert ended.said().count(f"training diverged: the {what} of step {row.step} is nan\n") == 1
    assert row.words in ended.said() and "--loss_spike_threshold 5" in ended.said()
    assert saved(tmp_path) and max(saved(tmp_path)) < row.step
    for step in saved(tmp_path):
        tensors = load_file(tmp_path / "pytorch" / f"checkpoint-{step}" / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_t5_whose_activations_overflow_in_bf16(prepared_pairs: Path, tmp_path: Path) -> None:
    """As in real ones, a feed-forward layer has outputs that its numbers can't hold."""
    for name in ("model", "data"):
        shutil.copytree(prepared_pairs / name, tmp_path / name)
    file = tmp_path / "model" / "model" / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.startswith("encoder.block.0.") and ".DenseReluDense." in name:
            tensors[name] = tensor * 1e20
    assert max(float(tensor.abs().max()) for tensor in tensors.values()) < torch.finfo(torch.bfloat16).max
    save_file(tensors, file, {"format": "pt"})
    file.with_name("SHA256SUMS").unlink()  # changed on purpose
    given = {"evaluation_strategy": "steps", "eval_steps": 2, "precision": "bf16"}
    with pytest.raises(ModelError, match=r"diverged: the loss of step 1 is nan\n  where: the batch of '"):
        run.main(finetune_words(tmp_path, tmp_path / "out", **given))
    assert saved(tmp_path / "out") == [] and not (tmp_path / "out" / "pytorch" / "model.safetensors").exists()
