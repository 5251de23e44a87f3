"""Checksums of a saved model, in the SHA256SUMS beside it, so that weights that a disk or a copy has changed are not
taken. `sha256sum -c SHA256SUMS` in the folder tells the same.

SHA-256, and not the faster XXH3 of checkpoints: a served model verifies itself with what Python brings along.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from finetune.core.console import say, some
from finetune.core.errors import Fault
from finetune.core.reading import Unreadable, no_file, plain_text
from finetune.models.stored.intact import AGAIN, raise_all

SUMS = "SHA256SUMS"
WEIGHTS = (".safetensors", ".bin")  # .bin is OpenVINO's
REMARKS = frozenset(("README.md", "training.json", SUMS))  # about the model; they are written after it
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_sums(folder: Path) -> None:
    """Write the checksums of all files of a model that was just saved there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in REMARKS)
    lines = [f"{_sum(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def refuse_damaged(folder: Path) -> None:
    """Raise ModelError, with each file, if weights in the folder are not those that were saved; tell of other files.

    A folder without checksums is taken as it is, and so is a file that they don't list.
    """
    listed = tell_changed(folder)
    fix = f"{AGAIN}; if you changed the weights yourself, remove {folder / SUMS}"
    why = f"it is not as it was saved, by {SUMS}: damaged, or of another model"
    wrong = _differing(folder, {name: sum_ for name, sum_ in listed.items() if name.endswith(WEIGHTS)})
    raise_all([Fault(f"{folder / name} is damaged", why=why, fix=fix) for name in wrong])


def tell_changed(folder: Path) -> dict[str, str]:
    """Tell which files beside the weights are not as they were saved, and return the checksum of each file by its name.

    They are no fault: who gives a model another tokenizer, or edits its config, does it on purpose.
    """
    listed, unread = _listed(folder)
    changed = [*_differing(folder, {name: sum_ for name, sum_ in listed.items() if not name.endswith(WEIGHTS)})]
    if changed:
        say(f"note: {some(changed)} of {folder}: not as saved with the model, by {SUMS}; edited, or damaged")
    if unread:
        say(f"note: {folder / SUMS} {unread}: what it lists there is not verified")
    return listed


def _listed(folder: Path) -> tuple[dict[str, str], str]:
    """Return the checksums by the name of the file, and why not all of them can be read; "" if they can."""
    if no_file(folder / SUMS) == "is missing":
        return {}, ""
    try:
        lines = plain_text(folder / SUMS).splitlines()
    except Unreadable as reason:
        return {}, f"can't be read ({reason})"
    found, unread = {}, []
    for number, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        if match and not PurePosixPath(match[2]).is_absolute() and ".." not in PurePosixPath(match[2]).parts:
            found[match[2]] = match[1]
        else:
            unread.append(f"line {number}")
    return found, f"has no checksum and name in {some(unread)}" if unread else ""


def _differing(folder: Path, listed: dict[str, str]) -> Iterator[str]:
    """Yield the files that are there, but not as listed: whether one may be missing is said elsewhere."""
    for name, wanted in listed.items():
        if not no_file(folder / name) and _sum(folder / name) != wanted:
            yield name


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
