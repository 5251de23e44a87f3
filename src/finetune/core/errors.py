"""Errors written for the person who has to fix them: what, where, why, how to fix; one exit code per class."""

import errno
import re
from dataclasses import dataclass

LONGEST = 800  # characters of each part of a fault
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{24,}")  # may have been typed anywhere
FAULTS = 20  # shown of an error


def shortened(text: str, most: int = LONGEST) -> str:
    """Return the text, or its beginning and its end: a value that a user gives may be of any length."""
    if len(text) <= most:
        return text
    tail = most // 5
    head = most - tail - 30  # of which is said how many are left out
    return f"{text[:head]}… ({len(text) - head - tail:,} characters) …{text[-tail:]}"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `fix` is a command or a value that the user can type."""

    what: str
    where: str = ""
    why: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [shortened(self.what)]
        lines += [f"  {label}: {shortened(text)}" for label, text in self._details() if text]
        return _HUB_TOKEN.sub("hf_…", "\n".join(lines))

    def _details(self) -> tuple[tuple[str, str], ...]:
        return ("where", self.where), ("why", self.why), ("fix", self.fix)


class FinetuneError(Exception):
    """Base of all errors that are the user's to mend. Carries every fault of its kind found at once."""

    exit_code = 1
    title = "error"
    known_to_all = False  # the processes of the run have told one another (failure.py)

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        lines = [f"{self.title}: {fault}" for fault in self.faults[:FAULTS]]
        if (more := len(self.faults) - FAULTS) > 0:
            lines.append(f"{self.title}: … {more:,} more like these")
        return "\n".join(lines)


class ParameterError(FinetuneError):
    """A parameter is unknown, missing, of the wrong type or out of range."""

    exit_code = 2
    title = "parameter error"


class DataError(FinetuneError):
    """An input file can't be read, or its rows can't be used."""

    exit_code = 3
    title = "data error"


class HandoffError(FinetuneError):
    """A folder between two components is missing, incomplete or of another version."""

    exit_code = 4
    title = "hand-off error"


class ModelError(FinetuneError):
    """A model can't be loaded, or a saved model isn't the model that was trained."""

    exit_code = 5
    title = "model error"


class UnsupportedError(FinetuneError):
    """A valid request that this version can't carry out."""

    exit_code = 6
    title = "not supported"


class StorageError(FinetuneError):
    """A disk is full, or a file or folder may not be written."""

    exit_code = 8
    title = "storage error"


class StepError(FinetuneError):
    """A step of a pipeline run failed, here or on Azure ML; or a deployment there."""

    exit_code = 7
    title = "pipeline error"


class ServiceError(FinetuneError):
    """Azure ML's service, or a key vault, can't be reached, accepts no credential, or refuses."""

    exit_code = 11
    title = "Azure ML error"


class StoppedError(FinetuneError):
    """A SIGTERM ended the run, in training after a checkpoint that it can go on from."""

    exit_code = 9
    title = "stopped"


class PeerError(FinetuneError):
    """Another process of the run failed, with this exit code, or is gone; or one of them hangs."""

    exit_code = 10
    title = "run ended"

    def __init__(self, *faults: Fault, code: int = exit_code) -> None:
        super().__init__(*faults)
        self.exit_code = code


def first_line(error: BaseException) -> str:
    """Return the first line with words of another library's message, which may go on for pages; two if it ends in a
    colon."""
    first, second = ([line.strip() for line in str(error).splitlines() if line.strip()] + ["", ""])[:2]
    return shortened(f"{first} {second}".strip() if first.endswith(":") else first)


# What safetensors, SQLite and torch.save say where there is no room.
NO_SPACE = ("No space left on device", "disk is full", "disk I/O error", "unexpected pos", "PytorchStreamWriter failed")


def storage_error(error: Exception) -> StorageError | None:
    """Return what the user can mend in an error of the file system; None for any other error."""
    full = "give it more room, or another output folder"
    fixes = {errno.ENOSPC: full, errno.EDQUOT: full, errno.EFBIG: full}
    fixes |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give a folder that you may write to")
    number = error.errno if isinstance(error, OSError) else None
    if number is None and any(text in str(error) for text in NO_SPACE):
        number = errno.ENOSPC
    if number not in fixes:
        return None
    name = error.filename if isinstance(error, OSError) else None
    return StorageError(Fault(f"{name or 'an output'} can't be written", why=first_line(error), fix=fixes[number]))
