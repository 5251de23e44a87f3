"""Collect the code that a component takes along, as Azure ML would upload it."""

import fnmatch
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from finetune.core.errors import Fault, ParameterError
from finetune.core.reading import Unreadable, plain_text
from finetune.core.types import Json
from finetune.params.schema import no_path

Snapshot = dict[Path, Path]  # path inside the snapshot -> file on this machine


def collect(code: list[Path], includes: list[Path]) -> Snapshot:
    """Return the files of the code folder, if there is one, but for those in .amlignore, and each include beside them.

    Raises: ParameterError if a path is missing, or a pattern is more than a file name.
    """
    missing = [path for path in (*code, *includes) if not path.exists()]
    if missing:
        raise ParameterError(
            *(Fault(f"{path} is missing", why="a component's code or additional_includes") for path in missing)
        )
    files = {path.relative_to(folder): path for folder in code for path in _files(folder, _ignored(folder))}
    for include in includes:
        files |= {path.relative_to(include.parent): path for path in _files(include, [])}
    return files


def of_component(path: Path, component: Json) -> Snapshot:
    """Return the files that the component of a YAML takes along. Raises: ParameterError if a path is missing."""
    code = [beside(path, component["code"])] if "code" in component else []
    return collect(code, [beside(path, include) for include in component.get("additional_includes") or ()])


def beside(file: Path, name: str) -> Path:
    """Return the absolute path of a name beside a file. Raises: ParameterError if it can't be one."""
    if why := no_path(name):
        raise ParameterError(Fault(f"the path {name!r} {why}", where=str(file)))
    return Path(os.path.realpath(file.parent / name))


def digest(files: Snapshot) -> str:
    """Return a digest that changes with the name or content of any file."""
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(f"{name}\0{files[name].stat().st_size}\0".encode())
        with files[name].open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def tree(path: Path) -> Snapshot:
    """Return a file, or every file of a folder."""
    return {file.relative_to(path): file for file in _files(path, [])}


def copy(files: Snapshot, target: Path) -> None:
    """Write the snapshot into an emptied folder."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _ignored(code: Path) -> list[str]:
    listing = code / ".amlignore"
    try:
        lines = plain_text(listing).splitlines() if listing.is_file() else []
    except Unreadable as reason:
        raise ParameterError(Fault(f"{listing} can't be read", why=str(reason))) from None
    patterns = [line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith("#")]
    for pattern in patterns:
        if "/" in pattern or pattern.startswith("!"):
            fix = "name files and folders by a pattern without / and !"
            raise ParameterError(Fault(f"pattern {pattern!r} is not understood", where=str(listing), fix=fix))
    return patterns


def _files(folder: Path, patterns: list[str]) -> Iterator[Path]:
    if os.path.realpath(folder) == folder.absolute().anchor:
        what = f"{folder} is the root of a disk"
        raise ParameterError(Fault(what, why="all of its files would be read", fix="give a folder in it"))
    if folder.is_file():
        yield folder
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in patterns):
            yield path
