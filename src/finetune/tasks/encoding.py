"""Encode rows part by part, so that memory grows neither with their number nor with their length."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from finetune.data.batches import Columns
from finetune.data.table import Row
from finetune.tasks.task import S, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROWS_AT_A_TIME = 256  # bounds the memory of windows and n-best lists; more would not be faster
CHARACTERS = 1_000_000  # in a call of the tokenizer, whose result then takes 0.25 GB


def encoded(
    rows: Sequence[Row], task: Task[S], tokenizer: "PreTrainedTokenizerFast", state: S, most: int
) -> Iterator[tuple[list[Row], Columns]]:
    """Yield some rows after another with their windows, whose "row" counts from the first of them.

    These are at most `most` rows and CHARACTERS characters, or one row that is longer.
    """
    part: list[Row] = []
    left = CHARACTERS
    for row in rows:
        size = task.data.characters(row)
        if part and (len(part) == most or size > left):
            yield part, task.data.encode(part, tokenizer, state)
            part, left = [], CHARACTERS
        part.append(row)
        left -= size
    if part:
        yield part, task.data.encode(part, tokenizer, state)
