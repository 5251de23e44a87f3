"""Checkpoints: which are whole, which to go on from, and what to do with those of an earlier run."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from finetune.console import say
from finetune.errors import Fault, ParameterError

WHOLE = "complete"  # written last: its existence means that the checkpoint is whole


@dataclass(frozen=True)
class Marker:
    """What the marker says: with other numbers, a step of the checkpoint is another place in the data."""

    global_batch: int
    windows: int


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


def refuse_other_steps(checkpoint: Path, marker: Marker) -> None:
    """Raises: ParameterError if the run would go on at another place in the data than the checkpoint's."""
    was = Marker(**json.loads((checkpoint / WHOLE).read_text()))
    faults = []
    if was.global_batch != marker.global_batch:
        why = "that is per_device_train_batch_size x gradient_accumulation_steps x processes"
        what = f"{checkpoint.name} has {was.global_batch} windows in a step, this run has {marker.global_batch}"
        faults.append(Fault(what, why=why, fix="give the same numbers, or --resume_from_checkpoint false"))
    if was.windows != marker.windows:
        what = f"{checkpoint.name} has {was.windows} training windows, this run has {marker.windows}"
        faults.append(Fault(what, fix="give the same data, or --resume_from_checkpoint false"))
    if faults:
        raise ParameterError(*faults)
