"""Prove that what was saved is what was trained: both folders are loaded afresh and asked some rows of validation."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.core.console import say, some
from finetune.core.errors import Fault, ModelError
from finetune.core.types import Json
from finetune.data.sampler import window_lengths
from finetune.data.table import Row
from finetune.models.loading import load_model
from finetune.models.memory import room_for
from finetune.models.prediction import predict_rows
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.results.limits import SERVED_ON, UNLIMITED
from finetune.tasks.task import Prediction, State, Task

ROWS, AT_MOST = 8, 12  # more than ROWS only where it takes more to have all kinds
TOKENS = 100_000  # of all these rows: each is answered three times, on a CPU perhaps
BATCH_SIZE = 8
# How far another attention or device may move a score, be it a probability or a difference of logits. On a BERT of 24
# layers, eager instead of sdpa moved logits by 2e-5; weights rounded to 16 bits moved them by 1e-2 (fp16) and 2e-1.
TOLERANCE = 1e-3
WINDOWS = ("no window", "one window", "several windows")
FIX = (
    "--resume_from_checkpoint true saves the best checkpoint again and proves it, without training; if it persists, "
    "report it with resolved_config.yaml"
)


def choose(rows: Sequence[Row], windows: Dataset, task: Task[State]) -> tuple[list[Row], int]:
    """Return the longest row, and rows of each kind: the task's kinds, and one, several or no windows.

    `windows` are those of all rows; how many are of the rows chosen is returned too. The row that adds most kinds comes
    next, and the first of equals. All have at most TOKENS tokens together, the longest half of that; where every row
    with a window has more, it is the shortest of them.
    """
    owner = windows.with_format("arrow")[:]["row"].to_numpy()
    counts = np.bincount(owner, minlength=len(rows))
    tokens = np.bincount(owner, window_lengths(windows), len(rows))
    kinds = [{*task.data.kinds(row), WINDOWS[min(n, 2)]} for row, n in zip(rows, counts.tolist(), strict=True)]
    chosen = [int(np.where(tokens <= TOKENS / 2, tokens, -1).argmax())]
    if not counts[chosen[0]]:
        chosen = [int(np.where(counts > 0, tokens, np.inf).argmin())]
    missing = set().union(*kinds) - kinds[chosen[0]]
    while missing and len(chosen) < AT_MOST:
        fitting = np.flatnonzero(tokens <= TOKENS - tokens[chosen].sum()).tolist()
        best = max(fitting, key=lambda i: len(missing & kinds[i]), default=chosen[0])
        if not missing & kinds[best]:
            break
        chosen.append(best)
        missing -= kinds[best]
    for i in range(min(ROWS, len(rows))):
        if len(chosen) < ROWS and i not in chosen and tokens[[*chosen, i]].sum() <= TOKENS:
            chosen.append(i)
    return [rows[i] for i in sorted(chosen)], int(counts[chosen].sum())


def prove(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    task: Task[State],
    state: State,
    pytorch: Path,
    mlflow_folder: Path,
) -> None:
    """Load both folders and compare their answers with the trained model's.

    One model is on the model's device at a time; where another one doesn't fit there, it answers on the CPU.
    Raises: ModelError with every row that differs, in either folder; nothing is deleted.
    """
    expected = predict_rows(model, tokenizer, rows, task, state, BATCH_SIZE)
    device = model.device
    model.to("cpu")  # type: ignore[arg-type]
    clear_device_cache(garbage_collection=True)
    if not room_for(model, device):
        say(f"prove it on the CPU: {device} has no memory for another model in 32 bits")
        device = torch.device("cpu")
    answers = {pytorch: _reloaded(pytorch, rows, task, state, device)}
    clear_device_cache(garbage_collection=True)
    answers[mlflow_folder] = _served(mlflow_folder, rows, task, device)
    found = {folder: differences(rows, expected, got, task, state) for folder, got in answers.items()}
    faults = [
        Fault(f"{folder} is not the model that was trained; it is kept, and so are the checkpoints", why=why, fix=FIX)
        for folder, lines in found.items()
        if (why := "\n    ".join(lines))
    ]
    if faults:
        raise ModelError(*faults)


def _reloaded(folder: Path, rows: Sequence[Row], task: Task[State], state: State, device: torch.device) -> list[Json]:
    model, new = load_model(folder, task, state)
    if new:
        raise ModelError(Fault(f"{folder} lacks weights", why=", ".join(new), fix=FIX))
    predictions = predict_rows(model.to(device), load_tokenizer(folder, task), rows, task, state, BATCH_SIZE)
    return [task.serving.present(prediction) for prediction in predictions]


def _served(folder: Path, rows: Sequence[Row], task: Task[State], device: torch.device) -> list[Json]:
    import mlflow
    import pandas as pd

    records = pd.DataFrame([task.serving.request(row) for row in rows])
    with _served_on(device), _no_byte_code():
        # What it is to be served with are the versions of this process: MLflow needn't compare them.
        model = mlflow.pyfunc.load_model(str(folder), model_config=UNLIMITED, suppress_warnings=True)
    served: list[Json] = model.predict(records).to_dict("records")
    return served


@contextmanager
def _served_on(device: torch.device) -> Iterator[None]:
    """Let a model that is loaded be served on this device, whatever the machine has."""
    asked = os.environ.get(SERVED_ON)
    os.environ[SERVED_ON] = "-1" if device.type == "cpu" else str(device.index or 0)
    try:
        yield
    finally:
        os.environ.pop(SERVED_ON)
        if asked is not None:
            os.environ[SERVED_ON] = asked


@contextmanager
def _no_byte_code() -> Iterator[None]:
    """Let the code of a model be imported without a trace: byte code in its folder would name this machine's paths."""
    wanted, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wanted


def differences(
    rows: Sequence[Row], expected: Sequence[Prediction], got: Sequence[Json], task: Task[State], state: State
) -> list[str]:
    """Return a line for each row whose answer differs by more than rounding: the trained model's / the saved one's."""
    lines = []
    for row, prediction, answer in zip(rows, expected, got, strict=True):
        different = list(_different(task.serving.present(prediction), answer))
        if different and not task.serving.tied(prediction, answer, state, TOLERANCE):
            lines.append(f"validation row {row['row']}, trained / saved: {some(different)}")
    return lines


def _different(one: object, other: object, place: str = "") -> Iterator[str]:
    """Yield where two answers differ by more than the rounding of floats."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _different(one[key], other[key], f"{place} {key}".strip())
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from _different(*pair, f"{place} {i}")
    elif not (
        math.isclose(one, other, abs_tol=TOLERANCE)
        if isinstance(one, float) and isinstance(other, float)
        else one == other
    ):
        yield f"{place} {one!r} / {other!r}"
