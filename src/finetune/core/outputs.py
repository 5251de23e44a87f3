"""What is ours in the folders that a command line names: what we did not write there is never removed or overwritten.

Every component leaves a manifest in each of its output folders: the files that it wrote, and while it runs, the names
that it is about to write, so that what an interrupted run leaves is known as ours too.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune.core.console import some
from finetune.core.errors import Fault, ParameterError, StorageError
from finetune.core.lock import held, refuse_if_lost
from finetune.core.reading import Unreadable, json_object

MANIFEST = "written_by_finetune.json"
LINK = " (a link)"  # behind the name of one: we make none, so that it is never ours


@dataclass(frozen=True)
class Output:
    """A folder to write into."""

    parameter: str  # as it is typed, --output_dir
    folder: Path
    names: tuple[str, ...]  # all that may be written there; # stands for digits, and folders end with /
    known: frozenset[str] = frozenset()  # what is ours by a mark of its own, without a manifest


@dataclass(frozen=True)
class Manifest:
    """What we wrote in a folder."""

    files: frozenset[str] = frozenset()  # paths in the folder, with / between and at the end of empty folders
    unfinished: tuple[str, ...] = ()  # names that a run was about to write, and all in them

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Return what the folder's manifest says. Raises: ValueError if it isn't one of ours."""
        path = folder / MANIFEST
        if not os.path.lexists(path):
            return cls()
        try:
            values = json_object(path)
            files, unfinished = values["files"], values["unfinished"]
        except (Unreadable, LookupError):
            raise ValueError("it can't be read") from None
        lists = all(
            isinstance(part, list) and all(isinstance(name, str) for name in part) for part in (files, unfinished)
        )
        if path.is_symlink() or not lists or any(Path(name).name != name.removesuffix("/") for name in unfinished):
            raise ValueError("it is not a list of names")
        return cls(frozenset(files), tuple(unfinished))

    def write(self, folder: Path) -> None:
        """Write the manifest in one piece."""
        part = folder / f".{MANIFEST}-{secrets.token_hex(4)}"
        values = {"files": sorted(self.files), "unfinished": self.unfinished}
        part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        part.replace(folder / MANIFEST)


def overlaps(inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> list[Fault]:
    """Return a fault for each output that is, holds or lies in an input, or is another output; links are followed.

    The keys are the parameters.
    """
    faults = []
    real = {name: Path(os.path.realpath(path)) for name, path in {**inputs, **outputs}.items()}
    names = list(outputs)
    for at, name in enumerate(names):
        for other in (*inputs, *names[:at]):
            inside, around = _lies_in(real[name], real[other]), _lies_in(real[other], real[name])
            if not (inside and around) if other in outputs else not (inside or around):
                continue
            how = "is" if inside and around else "lies in" if inside else "holds"
            place = {**inputs, **outputs}[other]
            faults.append(
                Fault(
                    f"{name} {outputs[name]} {how} {other} {place}",
                    why="what is written could take the place of what is there",
                    fix=f"{name} FOLDER, a folder of its own",
                )
            )
    return faults


def _lies_in(inner: Path, outer: Path) -> bool:
    """Return whether a path is another one or below it; both are real."""
    for path in (inner, *inner.parents):
        with contextlib.suppress(OSError):  # it isn't there
            if path == outer or path.samefile(outer):  # by a mount, or on a disk that knows no case
                return True
    return False


def refusals(output: Output) -> list[Fault]:
    """Return a fault if the folder can't be one, or holds what we did not write under a name that we write."""
    folder, name = output.folder, output.parameter
    fix = f"{name} FOLDER, another one"
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return [Fault(f"{name} {folder} can't be a folder", why=f"{nearest} is none", fix=fix)]
    if nearest != folder:
        return []
    try:
        ours = _ours(output)
    except ValueError as error:
        what = f"{name} {folder} holds a {MANIFEST} that is not ours"
        return [Fault(what, why=str(error), fix=f"{fix}, or move that file away")]
    others = sorted(_entries(folder, output.names) - ours)
    if not others:
        return []
    why = "they have names that are written there, and would be lost"
    what = f"{name} {folder} holds what this program did not write: {some(others)}"
    return [Fault(what, why=why, fix=f"{fix}, or move them away")]


@contextmanager
def claimed(outputs: Sequence[Output]) -> Iterator[None]:
    """Hold the folders, and keep their manifests, while a component writes into them.

    Raises: ParameterError, before anything is written, if a folder holds what isn't ours where we would write;
    StorageError if another run writes there.
    """
    faults = [fault for output in outputs for fault in refusals(output)]
    if faults:
        raise ParameterError(*faults)
    with _made([output.folder for output in outputs]), held({output.folder: output.parameter for output in outputs}):
        begun: list[Output] = []
        try:
            for output in outputs:
                begun.append(output)
                Manifest(_ours(output), output.names).write(output.folder)
            yield
        finally:
            for output in begun:
                with contextlib.suppress(OSError, ValueError):  # what was to be written then counts as written
                    _settle(output)


@contextmanager
def _made(folders: Sequence[Path]) -> Iterator[None]:
    """Make the folders; those that are new and empty at the end are removed."""
    new: list[Path] = []
    try:
        for folder in folders:
            new += [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in sorted(new, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):  # it isn't empty
                folder.rmdir()


def clear(folder: Path, names: Sequence[str]) -> None:
    """Remove what earlier runs wrote under the names, in their order, by the manifest of a folder that is claimed.

    Raises: StorageError, before that, if something else came there meanwhile: a link, say, that writes would follow.
    """
    refuse_if_lost(folder)
    ours = Manifest.read(folder).files
    others = sorted(_entries(folder, names) - ours)
    if others:
        raise StorageError(Fault(f"{folder} holds what this program did not write: {some(others)}", fix="move it away"))
    for pattern in names:
        gone = _entries(folder, [pattern]) & ours
        for name in gone:
            path = folder / name.removesuffix("/")
            path.rmdir() if name.endswith("/") else path.unlink()
        emptied = {folder / p for name in gone for p in Path(name).parents if p.name}
        emptied |= (
            {folder / pattern} if pattern.endswith("/") else set()
        )  # what is written there can't be moved into it
        for parent in sorted(emptied, reverse=True):
            with contextlib.suppress(OSError):  # it isn't empty
                parent.rmdir()


def bring_in(staged: Path, folder: Path) -> None:
    """Move what lies in one folder into a claimed one, from which what we wrote was cleared.

    Raises: StorageError if something is there all the same; it stays.
    """
    refuse_if_lost(folder)
    there = [path.name for path in staged.iterdir() if os.path.lexists(folder / path.name)]
    if there:
        raise StorageError(Fault(f"{folder} holds what this program did not write: {some(there)}", fix="move it away"))
    for path in staged.iterdir():
        shutil.move(path, folder / path.name)


def entries(place: Path, name: str) -> Iterator[str]:
    """Yield the paths of all files, links and empty folders of a place whose path is `name`; links aren't followed."""
    waiting = [(place, name)]
    while waiting:
        path, said = waiting.pop()
        if path.is_symlink():
            yield f"{said}{LINK}"
        elif not path.is_dir():
            yield said
        else:
            inside = list(path.iterdir())
            waiting += [(child, f"{said}/{child.name}") for child in inside]
            if not inside:
                yield f"{said}/"


def _entries(folder: Path, names: Sequence[str]) -> set[str]:
    """Return what is in the folder under the names; a folder of ours that is there and empty is nothing."""
    found: set[str] = set()
    listed = [path.name for path in folder.iterdir()]
    for pattern in names:
        name = pattern.removesuffix("/")
        if "#" in name:
            shape = re.compile(re.escape(name).replace(r"\#", "[0-9]+"))
            matching = [other for other in listed if shape.fullmatch(other)]
        else:  # a disk that knows no case may list it otherwise
            matching = [name] if os.path.lexists(folder / name) else []
        nothing = {f"{other}/" for other in matching} if pattern.endswith("/") else set()
        found |= {entry for other in matching for entry in entries(folder / other, other)} - nothing
    return found


def _ours(output: Output) -> frozenset[str]:
    before = Manifest.read(output.folder)
    there = {name for name in before.files if os.path.lexists(output.folder / name)}
    ours = there | _entries(output.folder, before.unfinished) | output.known
    return frozenset(name for name in ours if not name.endswith(LINK))


def _settle(output: Output) -> None:
    """Write down what there is of ours; where nothing was written, no manifest is left."""
    files = _ours(output)
    if files:
        Manifest(files).write(output.folder)
    else:
        (output.folder / MANIFEST).unlink()
