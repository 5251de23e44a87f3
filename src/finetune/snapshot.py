"""The code that a component takes along: what Azure ML would upload, built on this machine."""

import fnmatch
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path


def build(code: Path, includes: list[Path], into: Path) -> Path:
    """Copy `code` without what its .amlignore lists, and each include beside it, into a folder named by its content."""
    files = {path.relative_to(code): path for path in _files(code, _ignored(code))}
    for include in includes:
        files |= {path.relative_to(include.parent): path for path in _files(include, [])}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(str(name).encode() + b"\0" + files[name].read_bytes())
    target = into / digest.hexdigest()[:16]
    for name, path in files.items():
        copy = target / name
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return target


def _ignored(code: Path) -> list[str]:
    listing = code / ".amlignore"
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    return [line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith("#")]


def _files(folder: Path, patterns: list[str]) -> Iterator[Path]:
    if folder.is_file():
        yield folder
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in patterns):
            yield path
