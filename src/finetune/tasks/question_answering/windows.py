"""Make windows over the context of rows, and the labels of windows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from finetune.data.batches import Columns
from finetune.data.table import Row
from finetune.params.datapreprocess import QuestionAnsweringPreprocessParams
from finetune.tasks import task
from finetune.tasks.tokenizers import closing_token
from finetune.tasks.windowing import fitting_stride, stride_lines, window_length

NO_SPAN = -1  # offsets of tokens outside the context, and start and end of a withheld answer


@dataclass(frozen=True, kw_only=True)
class State(task.State):
    """The state that encoding and decoding need."""

    doc_stride: int
    n_best_size: int
    max_answer_length_in_tokens: int
    no_answer: bool  # training rows hold questions without an answer
    null_threshold: float = 0.0  # withhold the answer where the null score exceeds the best span's by more than this


def fit(
    params: QuestionAnsweringPreprocessParams,
    splits: Mapping[str, list[Row]],
    model_length: int,
    tokenizer: PreTrainedTokenizerFast,
) -> State:
    """Return the state of a run; doc_stride is lowered where a window could not hold it beside a question."""
    length = window_length(params.max_seq_length, model_length)
    room = length - tokenizer.num_special_tokens_to_add(pair=True) - len(closing_token(tokenizer)) - 1
    return State(
        max_seq_length=length,
        doc_stride=fitting_stride(params.doc_stride, room),
        pad_to_max_length=params.pad_to_max_length,
        n_best_size=params.n_best_size,
        max_answer_length_in_tokens=params.max_answer_length_in_tokens,
        no_answer=any(row["answers"] is not None and not row["answers"]["text"] for row in splits["train"]),
    )


def derived(params: QuestionAnsweringPreprocessParams, state: State, _splits: Mapping[str, list[Row]]) -> list[str]:
    """Return lines on what `fit` found or changed."""
    lines = stride_lines(params.doc_stride, state.doc_stride, state.max_seq_length)
    if state.no_answer:
        lines.append("questions without an answer: found in the training rows, so the model may withhold its answer")
    return lines


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, state: State) -> Columns:
    """Return windows of question and context.

    Columns: the tokenizer's own; row (index into `rows`); null_position, the token that stands for "no answer": the
    class token, else the last one, which is never part of the context; offset_start, offset_end: the characters of the
    context that a token covers, NO_SPAN outside the context.
    A row whose question leaves no room for doc_stride tokens and one more has no window.
    """
    closing = closing_token(tokenizer)
    special = tokenizer.num_special_tokens_to_add(pair=True) + len(closing)
    room = state.max_seq_length - special - state.doc_stride
    questions = tokenizer([row["question"] for row in rows], add_special_tokens=False)["input_ids"]
    fitting = [i for i, ids in enumerate(questions) if len(ids) < room]
    if not fitting:
        return {}
    encoded = tokenizer(
        [rows[i]["question"] for i in fitting],
        [rows[i]["context"] for i in fitting],
        truncation="only_second",
        max_length=state.max_seq_length - len(closing),
        stride=state.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    last = {"input_ids": closing, "attention_mask": [1] * len(closing), "token_type_ids": [0] * len(closing)}
    columns: Columns = {
        name: [values + last[name] for values in encoded[name]]
        for name in tokenizer.model_input_names
        if name in encoded
    }
    columns["row"] = [fitting[i] for i in encoded["overflow_to_sample_mapping"]]
    columns["null_position"] = [_null_position(ids, tokenizer.cls_token_id) for ids in columns["input_ids"]]
    columns["offset_start"], columns["offset_end"] = [], []
    for window, offsets in enumerate(encoded["offset_mapping"]):
        spans = np.asarray(offsets, dtype=np.int32)
        in_context = np.array([sequence == 1 for sequence in encoded.sequence_ids(window)])
        for name, side in (("offset_start", 0), ("offset_end", 1)):
            offsets_here = np.where(in_context, spans[:, side], NO_SPAN)
            columns[name].append(np.pad(offsets_here, (0, len(closing)), constant_values=NO_SPAN))
    return _padded(columns, state.max_seq_length, padding(tokenizer)) if state.pad_to_max_length else columns


def _null_position(input_ids: list[int], cls_token_id: int | None) -> int:
    return input_ids.index(cls_token_id) if cls_token_id in input_ids else len(input_ids) - 1


def _padded(columns: Columns, length: int, fill: dict[str, int]) -> Columns:
    """Return the columns with their lists filled up on the right."""
    return {
        name: [
            np.pad(one, (0, length - len(one)), constant_values=fill.get(name, 0)) if np.ndim(one) else one
            for one in of
        ]
        for name, of in columns.items()
    }


def label(rows: Sequence[Row], windows: Columns, _state: State) -> tuple[Columns, set[int]]:
    """Return start_positions and end_positions of the first answer, null_position in windows without all of it.

    Also return the rows that can't be learnt from: no window holds the answer, or there is no window at all.
    """
    spans = [_label(rows[row], windows, i) for i, row in enumerate(windows.get("row", []))]
    windowed = set(windows.get("row", []))
    held = {row for row, span in zip(windows.get("row", []), spans, strict=True) if span}
    lost = {i for i, row in enumerate(rows) if i not in (held if row["answers"]["text"] else windowed)}
    null = windows.get("null_position", [])
    return {
        "start_positions": [span[0] if span else null[i] for i, span in enumerate(spans)],
        "end_positions": [span[1] if span else null[i] for i, span in enumerate(spans)],
    }, lost


def _label(row: Row, windows: Columns, window: int) -> tuple[int, int] | None:
    """Return first and last token of the first answer in a window; None where the window doesn't hold all of it."""
    if not row["answers"]["text"]:
        return None
    text = row["answers"]["text"][0].strip()
    start = row["context"].find(text, row["answers"]["answer_start"][0])
    stop = start + len(text)
    starts, ends = windows["offset_start"][window], windows["offset_end"][window]
    tokens = np.flatnonzero(starts != NO_SPAN)
    # One character may be several tokens (bytes, jamo): first is the first that ends after start, last the last that
    # begins before stop.
    after, before = (
        np.searchsorted(ends[tokens], start, side="right"),
        np.searchsorted(starts[tokens], stop, side="left"),
    )
    if after == len(tokens) or before == 0:
        return None
    first, last = tokens[after], tokens[before - 1]
    return (int(first), int(last)) if starts[first] <= start and ends[last] >= stop else None


def padding(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the values that fill columns up; what isn't listed is padded with 0 (attention_mask, token types)."""
    return {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "offset_start": NO_SPAN,
        "offset_end": NO_SPAN,
    }
