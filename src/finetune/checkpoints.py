"""Checkpoints: which are whole, which to go on from, and what to do with those of an earlier run."""

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from finetune.console import say

WHOLE = "complete"  # written last: its existence means that the checkpoint is whole


class MarkWhole(TrainerCallback):  # type: ignore[misc]
    """Write the marker once the Trainer has written everything else."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            with (folder / WHOLE).open("w") as file:
                file.write("\n")
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
