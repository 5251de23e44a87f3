"""Extractive question answering: rows of question, context and answers; windows over the context; the best span."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING, AutoModelForQuestionAnswering

from finetune.params import QuestionAnsweringColumns, QuestionAnsweringPreprocessParams
from finetune.tables import Audit, Row, Table
from finetune.tasks.task import Batch, Columns, Prediction, Reduced, Task

NO_SPAN = -1  # offsets of tokens outside the context, and start and end of a withheld answer
REPAIR_DISTANCE = 50  # characters around a wrong offset in which the answer is looked for


@dataclass(frozen=True)
class State:
    """What encoding and decoding need. Travels in preprocess.json and in the model's config.json."""

    max_seq_length: int
    doc_stride: int
    pad_to_max_length: bool
    n_best_size: int
    max_answer_length_in_tokens: int
    no_answer: bool  # training rows hold questions without an answer
    null_threshold: float = 0.0  # withhold the answer where the null score exceeds the best span's by more than this


# --- rows ---


def validate(table: Table, columns: QuestionAnsweringColumns, audit: Audit) -> list[Row]:
    """Rows of {id, row, question, context, answers: {text, answer_start} | None}. None means: not annotated.

    Raises: DataError for a missing column. A file without any answers column is for prediction only.
    """
    needed = {"question_key": columns.question_key, "context_key": columns.context_key}
    if columns.answers_key != QuestionAnsweringColumns.answers_key:
        needed["answers_key"] = columns.answers_key  # asked for by name, so a slip of the pen is not "no answers"
    table.require(needed)
    rows = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        made = _row(row, number, columns)
        if isinstance(made, str):
            audit.add("dropped", made, number)
        else:
            placed, repaired = _place_answers(made)
            if placed is None:
                audit.add("dropped", "the answer is not in the context", number)
            else:
                rows.append(placed)
                if repaired:
                    audit.add("repaired", "answer_start was off; the answer stands near by", number)
    return rows


def _row(row: Row, number: int, columns: QuestionAnsweringColumns) -> Row | str:
    question, context = row.get(columns.question_key), row.get(columns.context_key)
    if not isinstance(question, str) or not question.strip():
        return "no question"
    if not isinstance(context, str) or not context.strip():
        return "no context"
    answers = _answers(row.get(columns.answers_key), columns)
    if isinstance(answers, str):
        return answers
    return {
        "id": str(row.get("id", number)),
        "row": number,
        "question": question,
        "context": context,
        "answers": answers,
    }


def _answers(value: Any, columns: QuestionAnsweringColumns) -> dict[str, list[Any]] | str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return "answers are not valid JSON"
    if not isinstance(value, dict) or not {columns.answer_text_key, columns.answer_start_key} <= value.keys():
        return f"answers are no object with {columns.answer_text_key!r} and {columns.answer_start_key!r}"
    texts, starts = _listed(value[columns.answer_text_key]), _listed(value[columns.answer_start_key])
    if len(texts) != len(starts):
        return "answers have another number of texts than of offsets"
    kept = [(text, start) for text, start in zip(texts, starts, strict=True) if text]
    if not all(isinstance(text, str) and _is_offset(start) for text, start in kept):
        return "an answer text is no string or its offset no number"
    return {"text": [text for text, _ in kept], "answer_start": [int(start) for _, start in kept]}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _is_offset(value: Any) -> bool:
    return not isinstance(value, bool) and re.fullmatch(r"\s*[+-]?[0-9]+\s*", str(value)) is not None


def _place_answers(row: Row) -> tuple[Row | None, bool]:
    """The row with every offset at its text, and whether one had to be moved; None where a text isn't in reach."""
    if row["answers"] is None:
        return row, False
    context, starts = row["context"], []
    for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        if start >= 0 and context.startswith(text, start):
            starts.append(start)
            continue
        low = max(0, start - REPAIR_DISTANCE)
        found = [i for i in range(low, start + REPAIR_DISTANCE + 1) if context.startswith(text, i)]
        if not found:
            return None, False
        starts.append(min(found, key=lambda i: abs(i - start)))
    moved = starts != row["answers"]["answer_start"]
    return {**row, "answers": {"text": row["answers"]["text"], "answer_start": starts}}, moved


def fit(params: QuestionAnsweringPreprocessParams, rows: list[Row], model_length: int, special_tokens: int) -> State:
    """The state of a run. doc_stride is lowered where a window could not hold it beside a question."""
    length = model_length if params.max_seq_length == -1 else min(params.max_seq_length, model_length)
    room = length - special_tokens - 1
    return State(
        max_seq_length=length,
        doc_stride=params.doc_stride if params.doc_stride < room else room // 4,
        pad_to_max_length=params.pad_to_max_length,
        n_best_size=params.n_best_size,
        max_answer_length_in_tokens=params.max_answer_length_in_tokens,
        no_answer=any(row["answers"] is not None and not row["answers"]["text"] for row in rows),
    )


# --- rows -> windows ---


def encode(rows: Sequence[Row], tokenizer: Any, state: State) -> Columns:
    """Windows of question and context.

    Columns: the tokenizer's own; row (index into `rows`); null_position, the token that stands for "no answer";
    offset_start, offset_end: the characters of the context that a token covers, NO_SPAN outside the context.
    A row whose question leaves no room for doc_stride tokens and one more has no window.
    """
    room = state.max_seq_length - tokenizer.num_special_tokens_to_add(pair=True) - state.doc_stride
    questions = tokenizer([row["question"] for row in rows], add_special_tokens=False)["input_ids"]
    fitting = [i for i, ids in enumerate(questions) if len(ids) < room]
    if not fitting:
        return {}
    encoded = tokenizer(
        [rows[i]["question"] for i in fitting],
        [rows[i]["context"] for i in fitting],
        truncation="only_second",
        max_length=state.max_seq_length,
        stride=state.doc_stride,
        padding="max_length" if state.pad_to_max_length else False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    columns: Columns = {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}
    columns["row"] = [fitting[i] for i in encoded["overflow_to_sample_mapping"]]
    columns["null_position"] = [_null_position(ids, tokenizer.cls_token_id) for ids in encoded["input_ids"]]
    columns["offset_start"], columns["offset_end"] = [], []
    for window, offsets in enumerate(encoded["offset_mapping"]):
        spans = np.asarray(offsets, dtype=np.int32)
        in_context = np.array([sequence == 1 for sequence in encoded.sequence_ids(window)])
        columns["offset_start"].append(np.where(in_context, spans[:, 0], NO_SPAN))
        columns["offset_end"].append(np.where(in_context, spans[:, 1], NO_SPAN))
    return columns


def _null_position(input_ids: list[int], cls_token_id: int | None) -> int:
    return input_ids.index(cls_token_id) if cls_token_id in input_ids else 0


def label(rows: Sequence[Row], windows: Columns) -> tuple[Columns, set[int]]:
    """start_positions and end_positions of the first answer, at null_position in windows that don't hold all of it.

    Also -> the rows that can't be learnt from: no window holds the answer, or there is no window at all.
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
    """(first, last) token of the first answer in a window; None where the window doesn't hold all of it."""
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


def padding(tokenizer: Any) -> dict[str, int]:
    """Fill values; what isn't listed is padded with 0 (attention_mask, token types)."""
    return {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "offset_start": NO_SPAN,
        "offset_end": NO_SPAN,
    }


# --- outputs -> loss, predictions ---


def loss(outputs: Any, batch: Batch) -> torch.Tensor:
    """(B,): the mean cross-entropy of start and end of each window.

    Padding is masked: transformers' own loss counts its logits in the softmax, so that the same rows give another
    loss at another padding (4.28 for 3.93 on a heavily padded batch).
    """
    padded = batch["attention_mask"] == 0  # (B, L)
    start = outputs["start_logits"].float().masked_fill(padded, -torch.inf)
    end = outputs["end_logits"].float().masked_fill(padded, -torch.inf)
    start_loss = functional.cross_entropy(start, batch["start_positions"], reduction="none")
    return (start_loss + functional.cross_entropy(end, batch["end_positions"], reduction="none")) / 2


def items(batch: Batch) -> torch.Tensor:
    """(B,): every window counts once."""
    return torch.ones_like(batch["start_positions"])


def reduce(outputs: Any, batch: Batch, state: State) -> Reduced:
    """The n_best_size spans of each window with the highest start + end logit, exactly.

    -> score (B, n), start and end (B, n) as characters of the context, null_score (B,), row (B,).

    The best end for every start is the maximum of the end logits over a window of max_answer_length_in_tokens. A span
    among the n best begins at one of the n starts with the best such sum, since each better start has a better span;
    so only those n starts need all their ends looked at, and memory is B x (L + n x answer length).
    """
    outside = batch["offset_start"] == NO_SPAN  # (B, L)
    start = outputs["start_logits"].float().masked_fill(outside, -torch.inf)
    end = outputs["end_logits"].float().masked_fill(outside, -torch.inf)
    length = start.shape[1]
    answer = min(state.max_answer_length_in_tokens, length)
    reach = functional.pad(end, (0, answer - 1), value=-torch.inf)  # (B, L + answer - 1)
    best_end = functional.max_pool1d(reach[:, None], answer, stride=1)[:, 0]  # (B, L)
    n, starts = state.n_best_size, min(state.n_best_size, length)
    firsts = (start + best_end).topk(starts).indices  # (B, starts)
    ends = reach.unfold(1, answer, 1).gather(1, firsts[..., None].expand(-1, -1, answer))  # (B, starts, answer)
    sums = (start.gather(1, firsts)[..., None] + ends).flatten(1)
    score, flat = functional.pad(sums, (0, n), value=-torch.inf).topk(n)  # (B, n), -inf where there are fewer spans
    first = firsts.gather(1, (flat // answer).clamp(max=starts - 1))
    last = (first + flat % answer).clamp(max=length - 1)
    null = batch["null_position"][:, None]
    null_score = outputs["start_logits"].float().gather(1, null) + outputs["end_logits"].float().gather(1, null)
    return {
        "row": batch["row"],
        "score": score,
        "start": batch["offset_start"].gather(1, first),
        "end": batch["offset_end"].gather(1, last),
        "null_score": null_score[:, 0],
    }


def decode(reduced: Reduced, rows: Sequence[Row], state: State) -> list[Prediction]:
    """One prediction for each row: the best spans over its windows. The one decoder of training, evaluation, serving.

    A prediction is {text, score, start, end, span_text, null_score, n_best}: score is the probability among the n best,
    span_text the best span, also where it is withheld, null_score how much the null answer beats it by (the minimum
    over windows, as in Devlin et al. 2018).
    """
    row_of = reduced.get("row", np.empty(0, dtype=np.int64))  # window -> row
    order = np.argsort(row_of, kind="stable")
    bounds = np.searchsorted(row_of[order], np.arange(len(rows) + 1))
    return [_decode(reduced, order[bounds[i] : bounds[i + 1]], row["context"], state) for i, row in enumerate(rows)]


def _decode(reduced: Reduced, windows: Any, context: str, state: State) -> Prediction:
    nothing = {**_candidate(context, (NO_SPAN, NO_SPAN), 0.0), "span_text": "", "null_score": 0.0, "n_best": []}
    if not len(windows):
        return nothing
    spans: dict[tuple[int, int], float] = {}
    for start, end, score in zip(
        reduced["start"][windows].ravel().tolist(),
        reduced["end"][windows].ravel().tolist(),
        reduced["score"][windows].ravel().tolist(),
        strict=True,
    ):
        span = _trim(context, start, end)
        if np.isfinite(score) and span[0] < span[1] and score > spans.get(span, -np.inf):
            spans[span] = score
    ranked = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[: state.n_best_size]
    if not ranked:
        return nothing
    null_score = float(reduced["null_score"][windows].min())
    if state.no_answer:
        ranked = sorted([*ranked, ((NO_SPAN, NO_SPAN), null_score)], key=lambda item: -item[1])
    weights = np.exp(np.array([score for _, score in ranked]) - ranked[0][1])
    n_best = [
        _candidate(context, span, weight) for (span, _), weight in zip(ranked, weights / weights.sum(), strict=True)
    ]
    best_score = max(score for span, score in ranked if span[0] != NO_SPAN)
    withheld = state.no_answer and null_score - best_score > state.null_threshold
    chosen = next(c for c in n_best if (c["start"] == NO_SPAN) == withheld)
    span_text = next(c["text"] for c in n_best if c["start"] != NO_SPAN)
    return {**chosen, "span_text": span_text, "null_score": null_score - best_score, "n_best": n_best}


def _trim(context: str, start: int, end: int) -> tuple[int, int]:
    # Some tokenizers count the space before a word as part of its token.
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def _candidate(context: str, span: tuple[int, int], score: float) -> Prediction:
    start, end = span
    return {"text": "" if start == NO_SPAN else context[start:end], "score": float(score), "start": start, "end": end}


def has_gold(row: Row) -> bool:
    return row["answers"] is not None


def metrics(predictions: Sequence[Prediction], rows: Sequence[Row]) -> dict[str, float]:
    """exact, f1, total, HasAns_*, NoAns_*, and best_* where there are unanswerable rows."""
    from finetune.metrics import Squad

    result: dict[str, float] = Squad().compute(
        predictions=[
            {"prediction_text": p["text"], "span_text": p["span_text"], "no_answer_score": p["null_score"]}
            for p in predictions
        ],
        references=[{"texts": row["answers"]["text"]} for row in rows],
    )
    return result


def calibrate(metrics: dict[str, float], state: State) -> State:
    """The threshold that gave the best F1 on validation, where the data hold unanswerable questions."""
    return replace(state, null_threshold=metrics["best_f1_thresh"]) if "best_f1_thresh" in metrics else state


def show(prediction: Prediction, row: Row) -> str:
    """The question, and the answer in [[ ]] within its sentence."""
    start, end, context = prediction["start"], prediction["end"], row["context"]
    if start == NO_SPAN:
        return f"Q: {row['question']}\nA: (no answer)"
    low = max(0, context.rfind(" ", 0, max(0, start - 60)))
    high = context.find(" ", min(len(context), end + 60))
    shown = f"{context[low:start]}[[{prediction['text']}]]{context[end : high if high >= 0 else None]}"
    return f"Q: {row['question']}\nA: … {shown.strip()} …"


def serve(records: Sequence[Row]) -> list[Row]:
    """Rows without answers."""
    return [
        {"id": str(i), "row": i, "question": record["question"], "context": record["context"], "answers": None}
        for i, record in enumerate(records)
    ]


def present(prediction: Prediction) -> dict[str, Any]:
    """The answer as it is served."""
    return {"answer": prediction["text"], **{key: prediction[key] for key in ("score", "start", "end")}}


TASK = Task(
    name="question_answering",
    auto_model=AutoModelForQuestionAnswering,
    families=MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    num_labels=2,
    validate=validate,
    group=lambda row: row["context"],
    fit=fit,
    state=State,
    encode=encode,
    label=label,
    decode_columns=frozenset({"row", "null_position", "offset_start", "offset_end"}),
    model_inputs=frozenset({"input_ids", "attention_mask", "token_type_ids"}),
    labels=frozenset({"start_positions", "end_positions"}),
    unlearnable="the question is too long for a window, or no window holds the whole answer",
    padding=padding,
    items=items,
    loss=loss,
    reduce=reduce,
    decode=decode,
    has_gold=has_gold,
    metrics=metrics,
    for_metrics=lambda prediction: {key: prediction[key] for key in ("text", "span_text", "null_score")},
    calibrate=calibrate,
    head_metric="f1",
    show=show,
    serve=serve,
    present=present,
    input_types={"question": "string", "context": "string"},
    output_types={"answer": "string", "score": "double", "start": "long", "end": "long"},
    example={"question": "Who wrote the report?", "context": "The report was written by Ada Lovelace in 1843."},
)
