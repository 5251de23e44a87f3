"""Paths on this machine: what begins at a working folder that is gone, what a wrong path may have meant."""

import atexit
import difflib
import os
import re
import shutil
import tempfile
from pathlib import Path

LOST = "begins at the working folder, which has been removed; give an absolute path, or go to another folder first"


# The endings of files of rows, for what is no id of a hub.
_OF_A_FILE = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".txt", ".conll", ".arrow", ".safetensors", ".zip")


class _Start:
    """Whether the folder was gone at the start."""

    nowhere = False


def leave_if_gone() -> None:
    """Go to an empty folder, removed at the end, if the working folder is gone: MLflow and others ask for its name."""
    try:
        Path.cwd()
    except FileNotFoundError:
        _Start.nowhere = True
        empty = tempfile.mkdtemp(prefix="finetune-")
        atexit.register(shutil.rmtree, empty, ignore_errors=True)
        os.chdir(empty)


def is_lost(path: str | Path) -> bool:
    """Return whether the path begins at a working folder that is gone."""
    return _Start.nowhere and not Path(path).is_absolute()


def nearest(path: Path) -> Path | None:
    """Return the path in the same folder whose name is most like it, if one is."""
    try:
        names = sorted(other.name for other in path.parent.iterdir())
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return path.parent / near[0] if near else None


def looks_local(name: str) -> bool:
    """Return whether a name that may be of a hub (`squad`, `nyu-mll/glue`) is rather a path that isn't there.

    It begins at a folder or ends as a file, has more parts than an id, or names something in a folder that is here.
    """
    if "://" in name:
        return False
    begins = name.startswith((".", "/", "~")) or re.match(r"[A-Za-z]:[\\/]", name)
    parts = name.split("/")
    return bool(
        begins
        or "\\" in name
        or len(parts) > 2
        or name.endswith("/")
        or name.lower().endswith(_OF_A_FILE)
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )
