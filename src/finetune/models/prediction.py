"""The one path from windows to predictions, for training, the evaluation component and serving.

A batch has B windows of L tokens. What a task reduces its outputs to has B as first dimension.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.data.batches import Batch, as_windows, batches_by_length, concatenated
from finetune.data.table import Audit, Row
from finetune.distributed.hangs import pulse
from finetune.models.memory import return_freed_memory
from finetune.tasks.encoding import ROWS_AT_A_TIME, encoded
from finetune.tasks.task import Prediction, Reduced, State, Task

if TYPE_CHECKING:
    from tqdm import tqdm

# For a padded batch in 16 bits, PyTorch takes cuDNN's attention on GPUs from Hopper on, which makes a plan for each new
# size of a batch, forward and backward: up to a second, where a step takes 0.05 (docs/gpu.md).
torch.backends.cuda.enable_cudnn_sdp(False)


class Watch:
    """A bar over rows that moves with each batch, and says how many tokens a second a model writes."""

    def __init__(self, bar: "tqdm", task: Task[State]) -> None:
        self.bar, self.task = bar, task
        self.started = time.perf_counter()
        self.tokens = self.before = 0
        self.seen: set[int] = set()

    def batch(self, reduced: Reduced) -> None:
        """Count the rows that a batch begins, and the tokens that it has written."""
        if self.bar.disable:
            return
        self.seen.update(reduced["row"].tolist())
        self.tokens += self.task.decoding.written(reduced)
        if self.tokens:
            rate = self.tokens / (time.perf_counter() - self.started)
            self.bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
        self.bar.update(self.before + len(self.seen) - self.bar.n)

    def rows(self, count: int) -> None:
        """Count rows as done, also those that took no batch: what comes next are others."""
        self.before += count
        self.seen.clear()
        self.bar.update(self.before - self.bar.n)


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    task: Task[State],
    state: State,
    keep_batches: int,
    gather: Callable[[Reduced], Reduced] = lambda tensors: tensors,
    watch: Watch | None = None,
) -> tuple[Reduced, float | None]:
    """Return the reduced outputs as NumPy arrays, and the mean loss over items, or None where batches have no labels.

    The outputs of a batch, (B, L), live as long as the batch. What is kept of it is small; that of `keep_batches`
    batches, of all if it is -1, stays on the device before it moves to the CPU together. `gather` collects over
    processes. "loss" and "items" are (N,): the summed loss and the items of each of N windows.
    """
    model.eval()
    kept: list[Reduced] = []
    moved: list[Reduced] = []
    for batch in batches:
        kept.append(gather(task.answer(model, batch, state)))
        if watch:
            watch.batch(kept[-1])
        if len(kept) == keep_batches:
            moved.append(task.decoding.compact(_moved(kept)))
            kept = []
        return_freed_memory()
        pulse.mark()
    moved += [task.decoding.compact(_moved(kept))] if kept else []
    arrays = {name: np.concatenate([part[name] for part in moved]) for name in (moved[0] if moved else ())}
    loss = float(arrays["loss"].sum(dtype=np.float64) / arrays["items"].sum()) if "loss" in arrays else None
    return arrays, loss


def _moved(kept: Sequence[Reduced]) -> Reduced:
    """Return the rows of all batches as arrays on the CPU, to which they move together."""
    return {name: tensor.cpu().numpy() for name, tensor in concatenated(kept).items()}


def predict_parts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    task: Task[State],
    state: State,
    batch_size: int,
    keep_batches: int = 1,
    audit: Audit | None = None,
    watch: Watch | None = None,
) -> Iterator[list[Prediction]]:
    """Yield the predictions of some rows after another, in order: memory does not grow with the rows.

    `audit` takes the rows that can't be answered.
    """
    for part, columns in encoded(rows, task, tokenizer, state, ROWS_AT_A_TIME):
        if audit is not None:
            for i, why in sorted(task.data.unanswerable(part, columns, state).items()):
                audit.add("kept", why, part[i]["row"])
        windows = as_windows(columns)
        batches = batches_by_length(windows, batch_size, task.data.padding(tokenizer), model.device)
        reduced, _ = predict(model, batches, task, state, keep_batches, watch=watch)
        if watch:
            watch.rows(len(part))
        yield task.decoding.decode(reduced, part, state, tokenizer)


def predict_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    task: Task[State],
    state: State,
    batch_size: int,
) -> list[Prediction]:
    """Return one prediction for each row, in order."""
    return [p for part in predict_parts(model, tokenizer, rows, task, state, batch_size) for p in part]


def compute_in(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """Return the model, its forward passes in "32" or "bf16", as accelerate has them in training."""
    if precision != "32":
        model.forward = torch.autocast(model.device.type, dtype=torch.bfloat16)(model.forward)
    return model


def autocast_for(precision: str, device: torch.device | str) -> Callable[[], AbstractContextManager[object]]:
    """Return the context of a forward pass in "32", "bf16" or "16"."""
    if precision == "32":
        return nullcontext
    computed_in = {"bf16": torch.bfloat16, "16": torch.float16}[precision]
    return lambda: torch.autocast(torch.device(device).type, dtype=computed_in)
