"""Checkpoint folders: how one is written so that it is whole or known to be incomplete, and which are kept."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from finetune.core.console import say
from finetune.core.types import Json

WRITING = "incomplete"  # there while the checkpoint is written
WHOLE = "complete"  # written last: what the run was, and the size of every file
STATE = "trainer_state.json"


def begin(checkpoint: Path) -> None:
    """Say that it is being written, in a folder without anything of a try that was given up."""
    if checkpoint.exists() and not _is_ours(checkpoint):
        target = _move([checkpoint], checkpoint.parent, "others")
        say(f"{checkpoint.name} was written by another program: moved to {target.name}/")
    checkpoint.mkdir(parents=True, exist_ok=True)
    _empty(checkpoint)


def flush(checkpoint: Path, rank: int) -> dict[str, int]:
    """What the process wrote to the disk, so that the marker can't outlive what it vouches for. -> the size of each.

    Only that: another machine would have to fetch it first, and may not see its true size for a while. DeepSpeed names
    the rank in the files of each process.
    """
    sizes = {}
    for folder, _, names in os.walk(checkpoint):
        for name in names:
            owner = re.search(r"_rank_(\d+)_", name)
            if name == WRITING or rank != (int(owner[1]) if owner else 0):
                continue
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
                sizes[str((Path(folder) / name).relative_to(checkpoint))] = os.fstat(file.fileno()).st_size
    _flush_names(checkpoint)
    return sizes


def finish(checkpoint: Path, run: Json, sizes: dict[str, int]) -> None:
    """Vouch for its files, once they are on the disk. `run` is what a resumed run must agree with."""
    with (checkpoint / WHOLE).open("w", encoding="utf-8") as file:
        json.dump({"run": run, "files": sizes}, file)
        file.flush()
        os.fsync(file.fileno())
    (checkpoint / WRITING).unlink()
    _flush_names(checkpoint)


def _flush_names(folder: Path) -> None:
    """Not every mounted file system has it."""
    with contextlib.suppress(OSError):
        entry = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def why_incomplete(checkpoint: Path) -> str:
    """Why one can't go on from it; '' if it and the best one up to it are whole."""
    why = _why_incomplete(checkpoint)
    if why:
        return why
    try:
        step = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["best_global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {STATE} can't be read"
    best = checkpoint.parent / f"checkpoint-{step}"
    if not step or best == checkpoint or not (why := _why_incomplete(best)):
        return ""
    return f"without the best model up to it, in {best.name}, which is incomplete: {why}"


def _why_incomplete(checkpoint: Path) -> str:
    if not (checkpoint / WHOLE).is_file():
        return "it was not written to its end"
    try:
        marker = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
        sizes = dict(marker.get("files", {}))  # other versions name none
    except (ValueError, AttributeError, TypeError):
        return f"its {WHOLE} can't be read"
    for name, size in sizes.items():
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} is missing" if found is None else f"{name} has {found:,} bytes instead of {size:,}"
    return ""


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint to go on from. Says which newer ones are skipped.

    Of those that this package wrote, what was never whole is removed, and the others are moved out of the way.
    """
    skipped = []
    whole = None
    for path in checkpoints(folder):
        why = why_incomplete(path)
        if not why:
            whole = path
            break
        ours, never_whole = _is_ours(path), not (path / WHOLE).exists()
        say(f"skip {path.name}: {why}" + ("; removed" if ours and never_whole else ""))
        if ours and never_whole:
            remove(path)
        elif ours:
            skipped.append(path)
    if skipped:
        say(f"moved to {_move(skipped, folder, 'skipped').name}/: {', '.join(path.name for path in skipped)}")
    return whole


def _is_ours(checkpoint: Path) -> bool:
    return any((checkpoint / name).exists() for name in (WRITING, WHOLE))


def remove(checkpoint: Path) -> None:
    """What is left of it if this is interrupted is known as ours, and as incomplete."""
    _empty(checkpoint)
    (checkpoint / WRITING).unlink()
    checkpoint.rmdir()


def _empty(checkpoint: Path) -> None:
    """But for the word that it is not whole, which comes first."""
    (checkpoint / WRITING).touch()
    (checkpoint / WHOLE).unlink(missing_ok=True)
    for path in checkpoint.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != WRITING:
            path.unlink()


def discard(folder: Path) -> None:
    """Take away the checkpoints of a try that is given up."""
    for path in filter(_is_ours, checkpoints(folder)):
        remove(path)


def keep(folder: Path, limit: int, always: set[Path]) -> None:
    """Of those that this package wrote `always` and the newest, `limit` in all; take away the others."""
    others = [path for path in checkpoints(folder) if _is_ours(path) and path not in always]
    for path in others[max(0, limit - len(always)) :]:
        remove(path)


def move_aside(folder: Path) -> None:
    """Keep the checkpoints of an earlier run out of the way of a new one."""
    old = checkpoints(folder)
    if not old:
        return
    target = _move(old, folder, "earlier-run")
    say(f"{len(old)} checkpoints of an earlier run moved to {target.name}/ (--resume_from_checkpoint true goes on)")


def _move(paths: list[Path], folder: Path, name: str) -> Path:
    """Into a new folder NAME-NUMBER beside them."""
    numbers = [path.name.rpartition("-")[2] for path in folder.glob(f"{name}-*")]
    target = folder / f"{name}-{1 + max((int(number) for number in numbers if number.isdigit()), default=0)}"
    target.mkdir()
    for path in paths:
        path.rename(target / path.name)
    return target
