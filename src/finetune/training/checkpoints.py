"""Write checkpoint folders so that each is complete or known to be incomplete, and decide which are kept."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypedDict

from xxhash import xxh3_128

from finetune.core.console import say
from finetune.core.outputs import entries
from finetune.core.reading import Unreadable, json_object, misfit, no_file
from finetune.core.types import Json
from finetune.models.stored.places import leave_out_places

WRITING = "incomplete"  # there while the checkpoint is written
COMPLETE = "complete"  # written last: what the run was, and the size and checksum of every file
STATE = "trainer_state.json"
READ = 2**24  # bytes at a time


class Written(NamedTuple):
    """A file that is on the disk."""

    size: int
    checksum: str  # XXH3 of 128 bits, which reads as fast as memory does; it is against chance, not malice


class _Marker(TypedDict, total=False):
    """What COMPLETE holds."""

    run: Json
    files: dict[str, int]
    checksums: dict[str, str]
    marker: str  # checksum of the rest; other versions have none


class _TrainerState(TypedDict, total=False):
    """What is read of transformers' own account of a run."""

    global_step: int
    best_global_step: int | None
    stateful_callbacks: dict[str, Any]


def begin(checkpoint: Path) -> None:
    """Mark the checkpoint as incomplete, in a folder without anything of an attempt that was given up."""
    if checkpoint.exists() and not _is_ours(checkpoint):
        target = _move([checkpoint], checkpoint.parent, "others")
        say(f"{checkpoint.name} was written by another program: moved to {target.name}/")
    checkpoint.mkdir(parents=True, exist_ok=True)
    _empty(checkpoint)


def leave_out_this_machine(checkpoint: Path) -> None:
    """Leave out of what the Trainer wrote where it lies: a checkpoint may be moved, or published with the model."""
    for name in ("training_args.bin", "README.md"):  # nobody reads them; peft's card names the path of its base model
        (checkpoint / name).unlink(missing_ok=True)
    leave_out_places(checkpoint)
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    if state["best_model_checkpoint"]:
        state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
        (checkpoint / STATE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def flush(checkpoint: Path, rank: int) -> dict[str, Written]:
    """Flush the files of this process to the disk, before the marker vouches for them. Return what each holds.

    Another machine would have to fetch them first, and may not see their true size for a while. DeepSpeed names the
    rank in the files of each process.
    """
    written = {}
    for folder, _, names in os.walk(checkpoint):
        for name in names:
            owner = re.search(r"_rank_(\d+)_", name)
            if name == WRITING or rank != (int(owner[1]) if owner else 0):
                continue
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
                found = Written(os.fstat(file.fileno()).st_size, _checksum(file))
            written[str((Path(folder) / name).relative_to(checkpoint))] = found
    _flush_names(checkpoint)
    return written


def _checksum(file: BinaryIO) -> str:
    found = xxh3_128()
    while part := file.read(READ):
        found.update(part)
    return found.hexdigest()


def _checksum_of(marker: Json) -> str:
    return xxh3_128(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def finish(checkpoint: Path, run: Json, written: Mapping[str, Written]) -> None:
    """Mark the checkpoint as complete, once its files are on the disk. `run` is what a resumed run must agree with."""
    files = {name: file.size for name, file in written.items()}
    checksums = {name: file.checksum for name, file in written.items()}
    marker: Json = {"run": run, "files": files, "checksums": checksums}
    with (checkpoint / COMPLETE).open("w", encoding="utf-8") as file:
        json.dump({**marker, "marker": _checksum_of(marker)}, file)
        file.flush()
        os.fsync(file.fileno())
    (checkpoint / WRITING).unlink()
    _flush_names(checkpoint)


def _flush_names(folder: Path) -> None:
    """Flush the names in the folder, where the file system can: not every mounted one does."""
    with contextlib.suppress(OSError):
        entry = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def why_incomplete(checkpoint: Path) -> str:
    """Return why a run can't go on from the checkpoint; '' if it and the best one up to it are complete."""
    why = _why_incomplete(checkpoint)
    if why:
        return why
    try:
        state = json_object(checkpoint / STATE)
        step = state["best_global_step"]
    except (Unreadable, KeyError):
        return f"its {STATE} can't be read"
    if why := misfit(state, _TrainerState, STATE):
        return why
    best = checkpoint.parent / f"checkpoint-{step}"
    if not step or best == checkpoint or not (why := _why_incomplete(best)):
        return ""
    return f"without the best model up to it, in {best.name}, which is incomplete: {why}"


def _why_incomplete(checkpoint: Path) -> str:
    if not (checkpoint / COMPLETE).is_file():
        return "it was not written to its end"
    try:
        marker: Any = json_object(checkpoint / COMPLETE)
    except Unreadable:
        return f"its {COMPLETE} can't be read"
    if misfit(marker, _Marker, COMPLETE):
        return f"its {COMPLETE} can't be read"
    if _is_damaged(marker):
        return f"its {COMPLETE} is damaged"
    checksums = marker.get("checksums", {})  # other versions have none, or list no files
    wrong = (_wrong(checkpoint, name, size, checksums.get(name)) for name, size in marker.get("files", {}).items())
    return next(filter(None, wrong), "")


def _is_damaged(marker: _Marker) -> bool:
    """Return whether a marker is not as it was written. One without a checksum is of another version."""
    known = _Marker.__annotations__.keys()
    if marker.keys() & known and marker.keys() - known:
        return True  # the name of an entry has changed, and with it what is looked up by that name
    rest = {name: value for name, value in marker.items() if name != "marker"}
    return marker.get("marker", _checksum_of(rest)) != _checksum_of(rest)


def _wrong(checkpoint: Path, name: str, size: int, checksum: str | None) -> str:
    """Return why a file is not the one that was written; "" if it is."""
    path = checkpoint / name
    if why := no_file(path):
        return f"{name[:100]} {why}"
    if (found := path.stat().st_size) != size:
        return f"{name} has {found:,} bytes instead of {size:,}"
    if checksum is None:
        return ""
    with path.open("rb") as file:
        same = _checksum(file) == checksum
    return "" if same else f"{name} is damaged: it has its size, but not the content that was written"


def newest_complete(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, to go on from, and print which newer ones are skipped.

    Of those that this package wrote, what was never complete is removed, and the others are moved out of the way.
    """
    skipped = []
    newest = None
    for path in checkpoints(folder):
        why = why_incomplete(path)
        if not why:
            newest = path
            break
        ours, never_complete = _is_ours(path), not (path / COMPLETE).exists()
        say(f"skip {path.name}: {why}" + ("; removed" if ours and never_complete else ""))
        if ours and never_complete:
            remove(path)
        elif ours:
            skipped.append(path)
    if skipped:
        say(f"moved to {_move(skipped, folder, 'skipped').name}/: {', '.join(path.name for path in skipped)}")
    return newest


def known(folder: Path) -> frozenset[str]:
    """Return what is ours in the folder by the marks of its checkpoints, in the terms of core/outputs.py."""
    found: set[str] = set()
    for path in checkpoints(folder):
        there = set(entries(path, path.name))
        if (path / WRITING).is_file():
            found |= there
        elif (path / COMPLETE).is_file():
            with contextlib.suppress(Unreadable, TypeError):
                files = json_object(path / COMPLETE).get("files")
                found |= there & {f"{path.name}/{name}" for name in (*files, COMPLETE)} if files else there
    return frozenset(found)


def _is_ours(checkpoint: Path) -> bool:
    return any((checkpoint / name).exists() for name in (WRITING, COMPLETE))


def remove(checkpoint: Path) -> None:
    """Remove the checkpoint; if this is interrupted, what is left is known as ours, and as incomplete."""
    _empty(checkpoint)
    (checkpoint / WRITING).unlink()
    checkpoint.rmdir()


def _empty(checkpoint: Path) -> None:
    """Remove what the checkpoint holds, but for the mark that it is incomplete, which is written first."""
    (checkpoint / WRITING).touch()
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    for path in checkpoint.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != WRITING:
            path.unlink()


def discard(folder: Path) -> None:
    """Remove the checkpoints of an attempt that is given up."""
    for path in filter(_is_ours, checkpoints(folder)):
        remove(path)


def keep(folder: Path, limit: int, always: set[Path]) -> None:
    """Remove checkpoints of ours until `limit` are left: those that are kept `always`, and the newest.

    One whose best model would be removed is of no use (why_incomplete), and leaves its place to an older one.
    """
    ours = [path for path in checkpoints(folder) if _is_ours(path)]
    kept = set(always)
    for path in ours:
        with_best = kept | {path, _best_up_to(path)}
        if len(with_best) <= max(limit, len(kept)) and with_best <= {*ours, *kept}:
            kept = with_best
    for path in ours:
        if path not in kept:
            remove(path)


def _best_up_to(checkpoint: Path) -> Path:
    try:
        step = json_object(checkpoint / STATE).get("best_global_step")
    except Unreadable:
        step = None
    return checkpoint.with_name(f"checkpoint-{step}") if step else checkpoint


def move_aside(folder: Path) -> None:
    """Move the checkpoints of an earlier run out of the way of a new one."""
    old = checkpoints(folder)
    if not old:
        return
    target = _move(old, folder, "earlier-run")
    say(f"{len(old)} checkpoints of an earlier run moved to {target.name}/ (--resume_from_checkpoint true goes on)")


def _move(paths: list[Path], folder: Path, name: str) -> Path:
    """Move the paths into a new folder NAME-NUMBER beside them, and return it."""
    numbers = [path.name.rpartition("-")[2] for path in folder.glob(f"{name}-*")]
    target = folder / f"{name}-{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"
    target.mkdir()
    for path in paths:
        path.rename(target / path.name)
    return target
