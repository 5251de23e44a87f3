"""What backends are tried on: a finished model, and windows of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.core.types import Json
from finetune.data.batches import Arrays, Batch, as_windows, collate, spread
from finetune.data.table import Row
from finetune.tasks.encoding import encoded
from finetune.tasks.task import State, Task

ALONE = 16  # windows that are timed one at a time, of all lengths
COMPARED = 32  # windows whose logits are compared


@dataclass(frozen=True)
class Trial:
    """A finished model and the windows that its backends are tried on."""

    folder: Path  # of the PyTorch model
    model: PreTrainedModel
    rounded: PreTrainedModel | None  # as it was trained, if that was with rounding
    tokenizer: PreTrainedTokenizerFast
    task: Task[State]
    state: State
    rows: Sequence[Row]  # of validation, with gold
    alone: Sequence[Batch]  # of one window each
    together: Batch
    compared: Sequence[Batch]  # of two windows, the shorter one padded: what goes into a forward pass
    calibration: Sequence[Arrays]  # the same of one window of train each
    threads: int
    batch_size: int

    def answer(self, model: PreTrainedModel, batch: Batch) -> object:
        """Compute what is timed: a forward pass, or of a model that writes all of its answer."""
        if self.task.writes:
            return self.task.answer(model, batch, self.state)
        return model(**{name: batch[name] for name in self.columns})

    @property
    def columns(self) -> list[str]:
        """The columns of a batch that what is timed looks at."""
        return [*(self.together if self.task.writes else self.compared[0])]

    @property
    def metric(self) -> str:
        """The main metric of the task."""
        return self.task.scoring.main_metric(self.state)


def windows_of(
    rows: Sequence[Row], task: Task[State], tokenizer: PreTrainedTokenizerFast, state: State, most: int
) -> list[Json]:
    """Return at most so many windows of the rows, as they are answered."""
    found: list[Json] = []
    for _, columns in encoded(spread(rows, most), task, tokenizer, state, most):
        found += as_windows(columns)
    return spread(found, most)


def passes_of(
    rows: Sequence[Row], task: Task[State], tokenizer: PreTrainedTokenizerFast, state: State, most: int
) -> list[Json]:
    """Return at most so many windows of the rows, of what goes into a forward pass alone; gold is a decoder's input."""
    found: list[Json] = []
    for part, columns in encoded(spread(rows, most), task, tokenizer, state, most):
        known = columns | (task.data.label(part, columns, state)[0] if task.writes else {})
        found += as_windows({name: values for name, values in known.items() if name in task.model.inputs})
    return spread(found, most)


def timed(windows: Sequence[Json], padding: dict[str, int], batch_size: int) -> tuple[list[Batch], Batch]:
    """Return the batches of one window, and the batch of many around the median length."""
    ordered = _by_length(windows)
    alone = [collate([window], padding) for window in spread(ordered, ALONE)]
    middle = max(0, (len(ordered) - batch_size) // 2)
    together = (ordered[middle : middle + batch_size] * batch_size)[:batch_size]
    return alone, collate(together, padding)


def compared(passes: Sequence[Json], padding: dict[str, int]) -> list[Batch]:
    """Return batches of two, the shortest beside the longest."""
    some = spread(_by_length(passes), COMPARED)
    return [collate(pair, padding) for pair in zip(some, reversed(some), strict=True)]


def _by_length(windows: Sequence[Json]) -> list[Json]:
    return sorted(windows, key=lambda window: len(window["input_ids"]))
