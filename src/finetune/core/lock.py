"""One run in a folder: a file in it says who writes there, and its heartbeat that the run is alive.

File systems' own locks are not used: mounted folders lack them, or have them for one machine alone.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.core import timing
from finetune.core.console import say
from finetune.core.errors import Fault, StorageError

LOCK = "in_use_by_finetune.json"
_TOKEN = secrets.token_hex(8)
_BOOT, _NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
_BEAT_DIGITS = 12


@dataclass(frozen=True)
class Holder:
    """The process that writes into a folder."""

    token: str
    machine: str  # where its process id means what it means here: this boot, this namespace
    host: str
    process: int
    begun: float  # seconds since the epoch, when the process began
    program: str
    since: str
    beat: str = "0" * _BEAT_DIGITS

    @classmethod
    def here(cls) -> "Holder":
        """Return this process."""
        import psutil  # what serves a model has none, and imports this module's neighbours

        boot = _BOOT.read_text().strip() if _BOOT.exists() else str(round(psutil.boot_time()))
        namespace = str(_NAMESPACE.readlink()) if _NAMESPACE.is_symlink() else ""
        return cls(
            token=_TOKEN,
            machine=f"{boot} {namespace}",
            host=socket.gethostname(),
            process=os.getpid(),
            begun=psutil.Process().create_time(),
            program=Path(sys.argv[0]).name,
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        )

    @classmethod
    def of(cls, content: bytes) -> "Holder | None":
        """Return the holder that a file names; None for a file that is just being made. Raises: ValueError."""
        if not content:
            return None
        try:
            holder = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            raise ValueError("it can't be read") from None
        if not isinstance(holder.process, int) or not isinstance(holder.begun, int | float):
            raise ValueError("it names no process")
        return holder

    def __str__(self) -> str:
        return f"{self.program}, process {self.process} on {self.host}, since {self.since}"

    def runs(self) -> bool | None:
        """Return whether the process still runs; None where that can't be seen from here."""
        if self.machine != Holder.here().machine:
            return None
        import psutil

        try:
            return bool(abs(psutil.Process(self.process).create_time() - self.begun) < 2)  # the clock may have been set
        except psutil.Error:
            return False


@contextmanager
def held(folders: Mapping[Path, str]) -> Iterator[None]:
    """Hold the folders, which are there, for this process; the values are the parameters that name them.

    Raises: StorageError if another run holds one.
    """
    me = Holder.here()
    taken: list[Path] = []
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(taken, ended), daemon=True)
    try:
        _take(folders, me, taken)
        beating.start()
        yield
    finally:
        ended.set()
        if beating.is_alive():
            beating.join()
        for folder in taken:
            with contextlib.suppress(OSError, ValueError):
                if _is_mine(folder):
                    (folder / LOCK).unlink()


def refuse_if_lost(folder: Path) -> None:
    """Raise StorageError if another run has taken the folder over, for which this one, long silent, was gone."""
    content = _content(folder)
    holder = Holder.of(content) if content else None
    if holder is not None and holder.token != _TOKEN:
        raise StorageError(Fault(f"{folder} was taken over by another run", where=str(holder)))


def _take(folders: Mapping[Path, str], me: Holder, taken: list[Path]) -> None:
    """Append to `taken` each folder once it is held. One whose holder shows no sign of life is waited for."""
    begun, first, told = time.monotonic(), dict[Path, bytes](), False
    while left := [folder for folder in folders if folder not in taken]:
        for folder in left:
            if _created(folder, me):
                taken.append(folder)
            elif (content := _content(folder)) is not None:
                silent = time.monotonic() - begun > timing.SILENT and content == first.get(folder)
                _judge(folder, folders[folder], content, first.setdefault(folder, content), silent)
        if len(taken) < len(folders):
            if not told and time.monotonic() - begun > timing.TOLD:
                told = True
                say(f"waiting up to {timing.SILENT:.0f} s for a sign of life of the run that holds {left[0]}")
            time.sleep(timing.LOCK_POLL)


def _judge(folder: Path, parameter: str, content: bytes, before: bytes, silent: bool) -> None:
    """Raise StorageError if the holder runs; remove the file of one that is gone."""
    try:
        holder = Holder.of(content)
    except ValueError as error:
        what, fix = f"{parameter} {folder} holds a {LOCK} that is not ours", f"{parameter} FOLDER, another one"
        raise StorageError(Fault(what, why=str(error), fix=fix)) from None
    runs = holder.runs() if holder is not None else None
    if runs or content != before:
        fix = f"wait for it, or {parameter} FOLDER, another one; if it has ended, rm {folder / LOCK}"
        raise StorageError(Fault(f"{parameter} {folder} is in use by another run", where=str(holder), fix=fix))
    if runs is False or silent:
        _remove(folder, content)
        say(f"note: {folder} was held by a run that is gone: {holder or 'unnamed'}")


def _created(folder: Path, me: Holder) -> bool:
    """Return whether the file was made, by this process; it is made or it is there, in one step."""
    try:
        file = (folder / LOCK).open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(json.dumps(asdict(me)).encode())
    except OSError:
        (folder / LOCK).unlink()
        raise
    return True


def _content(folder: Path) -> bytes | None:
    try:
        return (folder / LOCK).read_bytes()
    except FileNotFoundError:
        return None


def _remove(folder: Path, content: bytes) -> None:
    """Remove the file with this content; of several processes that do so one has it, and the others look again."""
    aside = folder / f".{LOCK}-{secrets.token_hex(4)}"
    with contextlib.suppress(FileNotFoundError):
        (folder / LOCK).rename(aside)
        if aside.read_bytes() != content and not (folder / LOCK).exists():  # that of a run that was quicker
            aside.rename(folder / LOCK)
        else:
            aside.unlink()


def _is_mine(folder: Path) -> bool:
    holder = Holder.of(_content(folder) or b"")
    return holder is not None and holder.token == _TOKEN


def _beat(folders: Sequence[Path], ended: threading.Event) -> None:
    """Count up in the files until the run has ended. In place: a reader never finds the file missing."""
    held = list(folders)
    count = 0
    while not ended.wait(timing.BEAT):
        count += 1
        for folder in list(held):
            try:
                if not _is_mine(folder):
                    held.remove(folder)
                    say(f"warning: another run has taken {folder} over, or {LOCK} was removed")
                    continue
                with (folder / LOCK).open("r+b") as file:
                    file.seek(-len('"}') - _BEAT_DIGITS, os.SEEK_END)
                    file.write(f"{count:0{_BEAT_DIGITS}}".encode())
            except (OSError, ValueError):  # a mount that fails for a moment
                continue
