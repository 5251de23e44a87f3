"""Measure how long rows are in tokens, which max_seq_length and batch sizes are chosen by."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from transformers import PreTrainedTokenizerFast

from finetune.core.console import progress
from finetune.data.batches import Columns
from finetune.data.table import Row
from finetune.tasks.encoding import encoded
from finetune.tasks.task import Lost, State, Task

SAMPLE, SEED = 5000, 0
ROWS_AT_A_TIME = 1000
UNLIMITED = 1_000_000_000
BARS, BAR_WIDTH = 8, 40


@dataclass(frozen=True)
class Lengths:
    """The token counts of rows, all or a sample, and of their windows."""

    total: int  # rows that a sample was drawn from
    rows: list[int]  # tokens of each row, nothing truncated
    windows: Sequence[int]  # tokens of each window
    windowed: int  # rows that take several windows
    lost: int  # rows that training can't learn from
    reasons: dict[Lost, int] = field(default_factory=dict)  # why, and of how many rows
    gold: list[int] = field(default_factory=list)  # tokens of the gold of each row, where decoding is bound to a length
    up_to_window: bool = False  # rows of several windows stand as one token more than a window may hold

    @property
    def expected_windows(self) -> int:
        """The number of windows that all rows take."""
        return round(len(self.windows) * self.total / len(self.rows))


def measure(rows: Sequence[Row], task: Task[State], tokenizer: PreTrainedTokenizerFast, state: State) -> Lengths:
    """Return the lengths of SAMPLE rows with gold, or of all if there are fewer; `task.data.fit` made the state."""
    sample = [rows[i] for i in random.Random(SEED).sample(range(len(rows)), min(SAMPLE, len(rows)))]
    state = replace(state, pad_to_max_length=False)
    tokens: list[int] = []
    windows: list[int] = []
    gold: list[int] = []
    reasons: Counter[Lost] = Counter()
    windowed = 0
    with progress(len(sample), "measure") as bar:
        for part, columns in encoded(sample, task, tokenizer, state, ROWS_AT_A_TIME):
            tokens += _tokens(part, columns, task, tokenizer, state)
            windows += [len(ids) for ids in columns.get("input_ids", [])]
            windowed += sum(count > 1 for count in Counter(columns.get("row", [])).values())
            labels, lost = task.data.label(part, columns, state)
            reasons.update(lost.values())
            gold += task.data.gold_lengths(columns | labels)
            bar.update(len(part))
    return Lengths(len(rows), tokens, windows, windowed, reasons.total(), dict(reasons), gold)


def _tokens(
    rows: Sequence[Row], columns: Columns, task: Task[State], tokenizer: PreTrainedTokenizerFast, state: State
) -> list[int]:
    """Return the tokens of each row, of which `columns` are the windows."""
    owners = columns.get("row", [])
    counts = Counter(owners)
    tokens = {row: len(ids) for row, ids in zip(owners, columns.get("input_ids", []), strict=True)}
    others = [i for i in range(len(rows)) if counts[i] != 1]  # only these differ from their window
    unlimited = replace(state, max_seq_length=UNLIMITED)
    whole = task.data.encode([rows[i] for i in others], tokenizer, unlimited) if others else {}
    tokens |= {others[row]: len(ids) for row, ids in zip(whole.get("row", []), whole.get("input_ids", []), strict=True)}
    return [tokens.get(i, 0) for i in range(len(rows))]


def of_windows(owners: Sequence[int], windows: Sequence[int], lost: int, limit: int) -> Lengths:
    """Return the lengths of rows that are encoded already.

    `owners[i]` is the row of window i, which has `windows[i]` tokens, at most `limit`; `lost` rows have no window.
    """
    _, first, counts = np.unique(owners, return_index=True, return_counts=True)
    several = counts > 1
    rows = [*np.where(several, limit + 1, np.asarray(windows)[first]).tolist(), *[0] * lost]
    return Lengths(len(rows), rows, windows, int(several.sum()), lost, up_to_window=True)


def describe(lengths: Lengths, limit: int) -> list[str]:
    """Return a histogram whose bars end at `limit`, the longest window, and what doesn't fit into one."""
    rows, n = sorted(lengths.rows), len(lengths.rows)
    median, most, longest = (
        f"over {limit}" if lengths.up_to_window and count > limit else str(count)
        for count in (rows[n // 2], rows[int(0.95 * (n - 1))], rows[-1])
    )
    of = f"{n:,} of {lengths.total:,} rows, seed {SEED}" if n < lengths.total else f"all {n:,} rows"
    share = {"several windows": lengths.windowed, "nothing to learn from": lengths.lost}
    return [
        f"tokens in a row ({of}): median {median}, 95% up to {most}, longest {longest}",
        *histogram(rows, limit),
        "  ".join(f"{count / n:.1%} {what}" for what, count in share.items()),
        *(f"  {count / n:.1%}: {lost.reason}" for lost, count in lengths.reasons.items()),
    ]


def histogram(values: Sequence[int], limit: int) -> list[str]:
    """Return BARS bars up to `limit`, and one for what is longer."""
    step = max(1, -(-limit // BARS))
    counts = Counter(min((value - 1) // step, (limit - 1) // step + 1 if value > limit else BARS) for value in values)
    longest = max(counts.values())
    lines = []
    for bar in range(max(counts) + 1):
        last = min((bar + 1) * step, limit)
        label = f"over {limit}" if bar * step >= limit else f"{bar * step + 1}-{last}"
        filled = "█" * round(BAR_WIDTH * counts[bar] / longest) or ("▏" if counts[bar] else "")
        lines.append(f"  {label:>11} {filled} {counts[bar] / len(values):.1%}")
    return lines
