"""Make windows over the context of rows, and the labels of windows."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerFast

from finetune.data.batches import Columns
from finetune.data.table import Row
from finetune.params.datapreprocess import QuestionAnsweringPreprocessParams
from finetune.tasks import task
from finetune.tasks.task import Lost
from finetune.tasks.tokenizers import closing_token
from finetune.tasks.windowing import fitting_stride, stride_lines, window_length

NO_SPAN = -1  # offsets of tokens outside the context, and start and end of a withheld answer
Span = tuple[int, int]


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
    splits: Mapping[str, Sequence[Row]],
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


def derived(params: QuestionAnsweringPreprocessParams, state: State, _splits: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return lines on what `fit` found or changed."""
    lines = stride_lines(params.doc_stride, state.doc_stride, state.max_seq_length)
    if state.no_answer:
        lines.append("questions without an answer: found in the training rows, so the model may withhold its answer")
    return lines


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, state: State) -> Columns:
    """Return windows of question and context.

    Columns: the tokenizer's own; row (index into `rows`); null_position, the token that stands for "no answer": the
    class token, else the last one, which is never part of the context; offset_start, token_end: the characters of the
    context that a token covers, NO_SPAN outside the context; offset_end: where an answer ends that ends with the token.
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
    columns["offset_start"], columns["token_end"] = [], []
    behind = np.full(len(closing), NO_SPAN, dtype=np.int32)
    for window, offsets in enumerate(encoded["offset_mapping"]):
        spans = np.asarray(offsets, dtype=np.int32)
        in_context = np.array([sequence == 1 for sequence in encoded.sequence_ids(window)])
        for name, side in (("offset_start", 0), ("token_end", 1)):
            columns[name].append(np.concatenate([np.where(in_context, spans[:, side], NO_SPAN), behind]))
    columns["offset_end"] = _answer_ends(rows, columns)
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


def _answer_ends(rows: Sequence[Row], columns: Columns) -> list[np.ndarray]:
    """Return token_end, moved behind the combining marks that follow and that no token covers.

    Tokenizers that strip accents have no tokens for them: an answer that ends in a vowel sign of Hindi, in an accent of
    its own or in U+FE0F could otherwise never be given back whole.
    """
    found = list(columns["token_end"])
    for row, group in groupby(range(len(found)), key=columns["row"].__getitem__):
        context = rows[row]["context"]
        if context.isascii():
            continue
        free = _combining()[np.frombuffer(context.encode("utf-32-le"), dtype=np.uint32)]
        if not free.any():
            continue
        windows = list(group)
        starts, ends = (np.concatenate([of[i] for i in windows]) for of in (columns["offset_start"], found))
        edges = [np.bincount(side[side != NO_SPAN], minlength=len(context) + 1) for side in (starts, ends)]
        free &= np.cumsum(edges[0] - edges[1])[:-1] == 0  # as many tokens have ended as have begun
        others = np.append(np.flatnonzero(~free), len(context))
        for i in windows:
            moved = others[np.searchsorted(others, np.maximum(found[i], 0))]
            found[i] = np.where(found[i] == NO_SPAN, NO_SPAN, moved).astype(np.int32)
    return found


@cache
def _combining() -> np.ndarray:
    """Return for each character whether it only changes the one before: Unicode's marks, and the tags of flags."""
    table = np.zeros(0x110000, dtype=bool)
    for code in (*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0)):  # all marks of Unicode 16
        table[code] = unicodedata.category(chr(code))[0] == "M"
    table[0xE0020:0xE0080] = True
    return table


def label(rows: Sequence[Row], windows: Columns, state: State) -> tuple[Columns, dict[int, Lost]]:
    """Return start_positions and end_positions of the first answer, null_position in windows without all of it.

    Also return the rows that can't be learnt from, with the reason.
    """
    places = [next(iter(_places(row)), None) for row in rows]
    spans, lost = _held(windows, places, state)
    null = windows.get("null_position", [])
    return {
        "start_positions": [span[0] if span else null[i] for i, span in enumerate(spans)],
        "end_positions": [span[1] if span else null[i] for i, span in enumerate(spans)],
    }, lost


def _places(row: Row) -> list[Span]:
    """Return where the answers stand in the context, without white space around them."""
    answers, places = row["answers"] or {"text": [], "answer_start": []}, []
    for text, offset in zip(answers["text"], answers["answer_start"], strict=True):
        start = row["context"].find(text.strip(), offset)
        places.append((start, start + len(text.strip())))
    return list(dict.fromkeys(places))


def _held(windows: Columns, places: Sequence[Span | None], state: State) -> tuple[list[Span | None], dict[int, Lost]]:
    """Return first and last token of each window's answer, None where the window doesn't hold all of it.

    `places` are the characters of each row's answer. A window holds it if it has a token for each of them that has one
    in any window of the row. Also return the rows without a window, and those whose answer no window holds.
    """
    owners = windows.get("row", [])
    asked = [places[row] for row in owners]
    spans = [place and _tokens(windows, i, place) for i, place in enumerate(asked)]
    found = [
        span and place and _characters(windows, i, span, place)
        for i, (span, place) in enumerate(zip(spans, asked, strict=True))
    ]
    covered: dict[int, Span] = {}  # row -> the characters of its answer from the first that has a token to the last
    for row, characters in zip(owners, found, strict=True):
        if characters:
            low, high = covered.get(row, characters)
            covered[row] = min(low, characters[0]), max(high, characters[1])
    held = [
        span if characters == covered.get(row) else None
        for row, span, characters in zip(owners, spans, found, strict=True)
    ]
    holding = {row for row, span in zip(owners, held, strict=True) if span}
    windowed = set(owners)
    lost = {}
    for row, place in enumerate(places):
        if row not in windowed:
            lost[row] = _question_too_long(state)
        elif place and row not in holding:
            lost[row] = _cut(state) if row in covered else STRIPPED
    return held, lost


def _tokens(windows: Columns, window: int, place: Span) -> Span | None:
    """Return first and last token of a window that cover characters of the place, None if none does."""
    starts, ends = windows["offset_start"][window], windows["token_end"][window]
    tokens = np.flatnonzero(starts != NO_SPAN)
    # One character may be several tokens (bytes, jamo): first is the first that ends after the place begins, last the
    # last that begins before it ends.
    first = np.searchsorted(ends[tokens], place[0], side="right")
    last = np.searchsorted(starts[tokens], place[1], side="left") - 1
    return (int(tokens[first]), int(tokens[last])) if first <= last else None


def _characters(windows: Columns, window: int, span: Span, place: Span) -> Span:
    """Return the characters of the place that the tokens of the span cover."""
    start, end = windows["offset_start"][window][span[0]], windows["token_end"][window][span[1]]
    return max(int(start), place[0]), min(int(end), place[1])


STRIPPED = Lost("the answer is made of characters that the tokenizer drops")


def _question_too_long(state: State) -> Lost:
    stride, window = state.doc_stride, f"a window of max_seq_length {state.max_seq_length}"
    reason = f"the question is too long beside doc_stride {stride} tokens of context in {window}"
    return Lost(reason, f"--doc_stride below {stride}" if stride else "shorter questions")


def _cut(state: State) -> Lost:
    shared = f"the doc_stride {state.doc_stride} tokens that windows of max_seq_length {state.max_seq_length} share"
    reason = f"no window holds the whole answer, which is longer than {shared}"
    return Lost(reason, f"--doc_stride above {state.doc_stride}")


def unanswerable(rows: Sequence[Row], windows: Columns, state: State) -> dict[int, str]:
    """Return the rows of which no prediction can be one of the gold answers, with the reason."""
    answers = [_places(row) for row in rows]
    reasons: dict[int, str] = {}
    for number in range(max([1, *map(len, answers)])):
        asked = [
            of[number] if number < len(of) and (not number or i in reasons) else None for i, of in enumerate(answers)
        ]
        found = _reasons(windows, asked, state)
        reasons = {row: why for row, why in reasons.items() if not asked[row] or row in found} if number else found
    return reasons


def _reasons(windows: Columns, places: Sequence[Span | None], state: State) -> dict[int, str]:
    """Return why the answer of a row can't be predicted, for rows of which that is so."""
    spans, lost = _held(windows, places, state)
    owners, longest = windows.get("row", []), state.max_answer_length_in_tokens
    long = f"the answer is longer than max_answer_length_in_tokens {longest}, so it can't be predicted whole"
    reasons = {row: long for row, span in zip(owners, spans, strict=True) if span and span[1] - span[0] >= longest}
    windowed = set(owners)
    for row, found in lost.items():
        reasons[row] = found.reason if row in windowed else f"{found.reason}, so its prediction is empty"
    return reasons


def gold_lengths(windows: Columns) -> list[int]:
    """Return the tokens of the gold answer of each row that has one, given labelled windows."""
    columns = (windows.get(name, []) for name in ("row", "start_positions", "end_positions", "null_position"))
    found = {row: end - start + 1 for row, start, end, null in zip(*columns, strict=True) if start != null}
    return list(found.values())


def beyond(lengths: Sequence[int], state: State) -> list[str]:
    """Return a line on gold answers that are too long to be predicted, if there are any; `lengths` in tokens."""
    allowed = state.max_answer_length_in_tokens
    longer = sum(length > allowed for length in lengths)
    if not longer:
        return []
    most, all_of_them = sorted(lengths)[math.ceil(0.99 * len(lengths)) - 1], max(lengths)
    reached, share = (most, "99%") if most > allowed else (all_of_them, "all")
    return [
        f"{longer:,} of {len(lengths):,} gold answers ({longer / len(lengths):.1%}) are longer than "
        f"max_answer_length_in_tokens ({allowed}): they can't be predicted whole; "
        f"--max_answer_length_in_tokens {reached} reaches {share}"
    ]


def padding(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the values that fill columns up; what isn't listed is padded with 0 (attention_mask, token types)."""
    return {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "offset_start": NO_SPAN,
        "offset_end": NO_SPAN,
        "token_end": NO_SPAN,
    }
