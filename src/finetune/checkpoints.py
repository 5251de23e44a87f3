"""Checkpoints: which are whole, which to go on from, and what to do with those of an earlier run."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from finetune.console import say
from finetune.errors import Fault, ParameterError
from finetune.handoff import Preprocessed, SelectedModel
from finetune.model import fingerprint
from finetune.params import FIXED_ON_RESUME, FinetuneParams
from finetune.schedule import Schedule
from finetune.schema import to_text

WHOLE = "complete"  # written last: its existence means that the checkpoint is whole
STATE = "trainer_state.json"


@dataclass(frozen=True)
class Marker:
    """What the marker says: a run that differs in one of these can't go on from the checkpoint."""

    windows: int
    data: str  # fingerprint of the training windows
    model: str  # fingerprint of the imported weights
    global_batch: int
    total_steps: int
    batch: list[int]  # per_device_train_batch_size and gradient_accumulation_steps that ran
    wanted_batch: list[int]  # those that were asked for
    parameters: dict[str, Any]  # those of FIXED_ON_RESUME

    @classmethod
    def of(cls, params: FinetuneParams, wanted: FinetuneParams, steps: Schedule, windows: int) -> "Marker":
        """Of a run with `params`, whose batch may be smaller than wanted."""
        model = SelectedModel.model_folder(params.model_selector_output)
        return cls(
            windows=windows,
            data=fingerprint(Preprocessed.windows_folder(params.preprocess_output, "train").glob("*.arrow")),
            model=fingerprint(model.rglob("*.safetensors"), ends=True),
            global_batch=steps.global_batch,
            total_steps=steps.total_steps,
            batch=_batch(params),
            wanted_batch=_batch(wanted),
            parameters={name: vars(params)[name] for name in FIXED_ON_RESUME},
        )

    @classmethod
    def read(cls, checkpoint: Path) -> "Marker":
        """Raises: ParameterError if another version of this package left it."""
        values = json.loads((checkpoint / WHOLE).read_text())
        known = {f.name for f in fields(cls)}
        if values.keys() != known or values["parameters"].keys() != set(FIXED_ON_RESUME):
            what = f"{checkpoint.name} was left by another version of finetune"
            raise ParameterError(Fault(what, where=str(checkpoint), fix="--resume_from_checkpoint false"))
        return cls(**values)


def _batch(params: FinetuneParams) -> list[int]:
    return [params.per_device_train_batch_size, params.gradient_accumulation_steps]


class MarkWhole(TrainerCallback):  # type: ignore[misc]
    """Write the marker once the Trainer has written everything else, on every process."""

    def __init__(self, marker: Marker) -> None:
        self.marker = marker

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the other processes write their random states
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            parts["model"].config.save_pretrained(folder)  # an adapter is saved without it
            with (folder / WHOLE).open("w") as file:
                json.dump(asdict(self.marker), file)
                file.flush()
                os.fsync(file.fileno())


def unmark(checkpoint: Path) -> None:
    """Before it is written again."""
    (checkpoint / WHOLE).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Take away the checkpoints of a try that is given up."""
    for path in checkpoints(folder):
        unmark(path)
        shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint to go on from; says which torn ones are skipped."""
    for path in checkpoints(folder):
        if (path / WHOLE).is_file():
            return path
        say(f"skip {path.name}: it was not written to its end")
    return None


def move_aside(folder: Path) -> None:
    """Keep the checkpoints of an earlier run out of the way of a new one."""
    old = checkpoints(folder)
    if not old:
        return
    number = 1 + sum(1 for _ in folder.glob("earlier-run-*"))
    target = folder / f"earlier-run-{number}"
    target.mkdir()
    for path in old:
        path.rename(target / path.name)
    say(f"{len(old)} checkpoints of an earlier run moved to {target.name}/ (--resume_from_checkpoint true goes on)")


def with_found_batch(params: FinetuneParams, checkpoint: Path) -> FinetuneParams:
    """With auto_find_batch_size, the batch that was found by the run of the same words which left the checkpoint."""
    was = Marker.read(checkpoint)
    if not params.auto_find_batch_size or was.wanted_batch != _batch(params):
        return params
    batch, accumulation = was.batch
    return replace(params, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)


def refuse_other_run(checkpoint: Path, now: Marker) -> None:
    """Raises: ParameterError, with everything in which the run differs from the one that left the checkpoint."""
    was = Marker.read(checkpoint)
    faults = []
    if was.windows != now.windows:
        what = f"{checkpoint.name} has {was.windows} training windows, this run has {now.windows}"
        faults.append(Fault(what, fix="give the same data, or --resume_from_checkpoint false"))
    elif was.data != now.data:
        what = f"{checkpoint.name} was trained on other rows than those of preprocess_output"
        faults.append(Fault(what, fix="give the same data, or --resume_from_checkpoint false"))
    if was.model != now.model:
        what = f"{checkpoint.name} began with other weights than those of model_selector_output"
        faults.append(Fault(what, fix="give the same model, or --resume_from_checkpoint false"))
    if was.global_batch != now.global_batch:
        why = "that is per_device_train_batch_size x gradient_accumulation_steps x processes"
        what = f"{checkpoint.name} has {was.global_batch} windows in a step, this run has {now.global_batch}"
        faults.append(Fault(what, why=why, fix="give the same numbers, or --resume_from_checkpoint false"))
    if was.total_steps != now.total_steps and not now.parameters["lr_scheduler_type"].startswith("constant"):
        why = f"the learning rate falls over all of them ({now.parameters['lr_scheduler_type']})"
        what = f"{checkpoint.name} is of a run of {was.total_steps} steps, this one has {now.total_steps}"
        fix = "give the same numbers, or train the finished model further as --pytorch_model_path of a new import"
        faults.append(Fault(what, why=why, fix=fix))
    for name, value in now.parameters.items():
        if was.parameters[name] != value:
            what = f"{checkpoint.name} was made with {name} {to_text(was.parameters[name])}, not {to_text(value)}"
            faults.append(Fault(what, fix=f"--{name} {to_text(was.parameters[name])}"))
    if faults:
        raise ParameterError(*faults)


def why_over(checkpoint: Path, params: FinetuneParams, steps: Schedule) -> str:
    """Why there is nothing left to train after the checkpoint; '' if there is."""
    state = json.loads((checkpoint / STATE).read_text())
    if state["global_step"] >= steps.total_steps:
        return f"it is the last of {steps.total_steps} steps"
    stopping = state["stateful_callbacks"].get("EarlyStoppingCallback")
    without = stopping["attributes"]["early_stopping_patience_counter"] if stopping else 0
    if params.apply_early_stopping and without >= params.early_stopping_patience:
        return f"training had stopped early, after {without} evaluations without improvement"
    return ""
