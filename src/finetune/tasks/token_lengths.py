"""Measure how long rows are in tokens, which max_seq_length and batch sizes are chosen by."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerFast

from finetune.data.table import Row

if TYPE_CHECKING:
    from finetune.tasks.task import State, Task

SAMPLE, SEED = 5000, 0
UNLIMITED = 1_000_000_000
BARS, BAR_WIDTH = 8, 40


@dataclass(frozen=True)
class Lengths:
    """The token counts of rows, all or a sample, and of their windows."""

    total: int  # rows that a sample was drawn from
    rows: list[int]  # tokens of each row, nothing truncated
    windows: list[int]  # tokens of each window
    windowed: int  # rows that take several windows
    lost: int  # rows that training can't learn from
    up_to_window: bool = False  # rows of several windows stand as one token more than a window may hold

    @property
    def expected_windows(self) -> int:
        """The number of windows that all rows take."""
        return round(len(self.windows) * self.total / len(self.rows))


def measure(rows: Sequence[Row], task: "Task[State]", tokenizer: PreTrainedTokenizerFast, state: "State") -> Lengths:
    """Return the lengths of SAMPLE rows, or of all if there are fewer; `state` is as `task.data.fit` made it."""
    sample = random.Random(SEED).sample(list(rows), min(SAMPLE, len(rows)))
    columns = task.data.encode(sample, tokenizer, replace(state, pad_to_max_length=False))
    windows = [len(ids) for ids in columns.get("input_ids", [])]
    owners = columns.get("row", [])
    counts = Counter(owners)
    tokens = dict(zip(owners, windows, strict=True))
    others = [i for i in range(len(sample)) if counts[i] != 1]  # only these differ from their window
    unlimited = replace(state, pad_to_max_length=False, max_seq_length=UNLIMITED)
    whole = task.data.encode([sample[i] for i in others], tokenizer, unlimited) if others else {}
    tokens |= {others[row]: len(ids) for row, ids in zip(whole.get("row", []), whole.get("input_ids", []), strict=True)}
    lost = task.data.label(sample, columns, state)[1] if all(task.data.has_gold(row) for row in sample) else set()
    windowed = sum(count > 1 for count in counts.values())
    return Lengths(len(rows), [tokens.get(i, 0) for i in range(len(sample))], windows, windowed, len(lost))


def of_windows(owners: Sequence[int], windows: Sequence[int], lost: int, limit: int) -> Lengths:
    """Return the lengths of rows that are encoded already.

    `owners[i]` is the row of window i, which has `windows[i]` tokens, at most `limit`; `lost` rows have no window.
    """
    counts = Counter(owners)
    tokens = dict(zip(owners, windows, strict=True))
    rows = [limit + 1 if count > 1 else tokens[row] for row, count in counts.items()] + [0] * lost
    windowed = sum(count > 1 for count in counts.values())
    return Lengths(len(rows), rows, list(windows), windowed, lost, up_to_window=True)


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
