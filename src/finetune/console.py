"""What a user sees while a component runs."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

SHOWN = 8  # names in a line


def start(component: str) -> None:
    """Say which component runs."""
    say(f"[{component}]")


def quiet_libraries() -> None:
    """Turn off the loading bars of transformers and datasets, and what transformers says to programmers."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    for name in ("alembic", "bitsandbytes", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


def is_main_process() -> bool:
    """False on the ranks above 0 of a distributed run."""
    return os.environ.get("RANK", "0") == "0"


def some(names: Sequence[str]) -> str:
    """The first of many."""
    return ", ".join(names[:SHOWN]) + (f", … {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def say(line: str) -> None:
    """One line for the user, from the main process alone."""
    if is_main_process():
        print(line, flush=True)


def progress(total: int, what: str) -> Any:
    """A tqdm bar; in a log file it writes a line now and then instead of redrawing."""
    from tqdm import tqdm

    live = sys.stderr.isatty() or "FINETUNE_LIVE" in os.environ
    return tqdm(total=total, desc=what, mininterval=0.1 if live else 10, disable=not is_main_process(), ncols=80)
