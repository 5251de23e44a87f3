"""The folder that the process was started in, which may have been removed since."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

LOST = "begins at the working folder, which has been removed; give an absolute path, or go to another folder first"


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
