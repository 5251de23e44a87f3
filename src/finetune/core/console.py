"""What a user sees while a component runs."""

import errno
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.core.errors import shortened
from finetune.core.launch import is_main_process, shares_terminal

if TYPE_CHECKING:
    from tqdm import tqdm

SHOWN = 8  # names in a line
BAR_AFTER = 2  # seconds, before a bar inside another shows itself
NAME, LINE = 80, 4000  # characters of a name, and of a line


def start(component: str, notes: Sequence[str] = ()) -> None:
    """Print which component runs, and the notes on its command line."""
    say(f"[{component}]")
    for note in notes:
        say(f"note: {note}")


def quiet_libraries() -> None:
    """Turn off the loading bars of transformers and datasets, and what libraries say to programmers.

    Called before anything else imports them: bitsandbytes says on import what else one might install.
    """
    for module in ("transformers", "torch.distributed"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")  # Marian's tokenizer
    for name in ("alembic", "bitsandbytes", "DeepSpeed", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)

    import datasets
    import torch
    import transformers

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed guesses it too, but says so

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def some(names: Sequence[str]) -> str:
    """Return the names, or the first SHOWN of many; each at most NAME characters long."""
    shown = ", ".join(shortened(name, NAME) for name in names[:SHOWN])
    return shown + (f", … {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def printable(text: str) -> str:
    """Return a text of others with signs for what a terminal would obey or not show, but for the ends of lines."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Output:
    """The place where this process prints."""

    own_log = False
    terminal = 2  # a file descriptor


def speaks() -> bool:
    """Return False where several processes share a terminal and this is neither the main one nor has its own log."""
    return is_main_process() or not shares_terminal() or _Output.own_log


def log_to(path: Path) -> None:
    """Write to the log from now on all that this process and its libraries print."""
    refuse_other_log(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        _Output.own_log, _Output.terminal = True, os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    print(log_head(), flush=True)


def log_head() -> str:
    """Return the line with which what a run adds to a log begins."""
    return f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}"


def refuse_other_log(path: Path) -> None:
    """Raise FileExistsError if the file is there and is no log of ours."""
    if os.path.lexists(path) and (path.is_symlink() or not path.read_bytes().startswith(b"--- ")):
        raise FileExistsError(errno.EEXIST, "is not a log of ours", str(path))


def back_to_terminal() -> None:
    """Print to the terminal again: the errors of this process, where the main one can't print them any more."""
    os.dup2(_Output.terminal, 2)


def say(line: str) -> None:
    """Print one line for the user, from the main process alone."""
    if is_main_process():
        print(shortened(line, LINE), flush=True)


def progress(total: int | None, what: str, inside: bool = False) -> "tqdm":
    """Return a tqdm bar, without a total only the count; in a log file it writes a line now and then instead of
    redrawing.

    One `inside` another, or a step that is most often short, shows itself after a while, and goes when it has ended.
    """
    from tqdm import tqdm

    live = sys.stderr.isatty() or "FINETUNE_LIVE" in os.environ
    every, after = 0.1 if live else 10, BAR_AFTER if inside else 0
    hidden = not is_main_process()
    return tqdm(total=total, desc=what, mininterval=every, delay=after, leave=not inside, disable=hidden, ncols=80)
