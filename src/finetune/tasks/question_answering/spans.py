"""Find the best spans in the model's outputs, and make predictions and their metrics of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace

from finetune.core.types import Json
from finetune.data.table import Row
from finetune.tasks.question_answering.questions import measured
from finetune.tasks.question_answering.windows import NO_SPAN, State
from finetune.tasks.task import Examined, Prediction, Reduced

if TYPE_CHECKING:
    from finetune.tasks.task import Array


def reduce(outputs: Mapping[str, "Array"], batch: Mapping[str, "Array"], state: State) -> Reduced:
    """Return the n_best_size spans of each window with the highest start + end logit, exactly, of arrays or tensors.

    They are score (B, n), start and end (B, n) as characters of the context, null_score (B,), row (B,). Of spans with
    the same score that which begins first is the better one.

    The best end for every start is the maximum of the end logits over a window of max_answer_length_in_tokens. A span
    among the n best begins at one of the n starts with the best such sum, since each better start has a better span;
    so only those n starts need all their ends looked at, and memory is B x (L + n x answer length).
    """
    xp = array_namespace(batch["offset_start"])
    outside = batch["offset_start"] == NO_SPAN  # (B, L)
    logits = [xp.astype(outputs[name], xp.float32) for name in ("start_logits", "end_logits")]
    start, end = (xp.where(outside, -xp.inf, values) for values in logits)
    length, n = start.shape[1], state.n_best_size
    answer, starts = min(state.max_answer_length_in_tokens, length), min(n, length)
    reach = _padded(end, answer - 1, xp)  # (B, L + answer - 1)
    firsts = _best(start + _highest_within(reach, answer, xp), starts, xp)  # (B, starts)
    lasts = firsts[..., None] + xp.arange(answer, device=firsts.device)  # (B, starts, answer)
    ends = xp.reshape(xp.take_along_axis(reach, _flat(lasts, xp), axis=1), lasts.shape)
    sums = _padded(_flat(xp.take_along_axis(start, firsts, axis=1)[..., None] + ends, xp), n, xp)
    chosen = _best(sums, n, xp)  # (B, n); their score is -inf where there are fewer spans
    first = xp.take_along_axis(firsts, xp.clip(chosen // answer, max=starts - 1), axis=1)
    last = xp.clip(first + chosen % answer, max=length - 1)
    null = batch["null_position"][:, None]
    return {
        "row": batch["row"],
        "score": xp.take_along_axis(sums, chosen, axis=1),
        "start": xp.take_along_axis(batch["offset_start"], first, axis=1),
        "end": xp.take_along_axis(batch["offset_end"], last, axis=1),
        "null_score": sum(xp.take_along_axis(values, null, axis=1) for values in logits)[:, 0],
    }


def _padded(values: "Array", more: int, xp: ModuleType) -> "Array":
    """Return (B, L + more): -inf behind the values (B, L)."""
    behind = xp.full((values.shape[0], more), -xp.inf, dtype=values.dtype, device=values.device)
    padded: Array = xp.concat([values, behind], axis=1)
    return padded


def _highest_within(values: "Array", width: int, xp: ModuleType) -> "Array":
    """Return (B, L) of (B, L + width - 1): the highest of each value and the `width - 1` behind it."""
    seen = 1
    while seen < width:
        step = min(seen, width - seen)
        values, seen = xp.maximum(values[:, :-step], values[:, step:]), seen + step
    return values


def _best(values: "Array", n: int, xp: ModuleType) -> "Array":
    """Return (B, n): where the n highest values of (B, N) stand, the first of equal ones first."""
    order: Array = xp.argsort(values, axis=1, descending=True, stable=True)
    return order[:, :n]


def _flat(values: "Array", xp: ModuleType) -> "Array":
    flat: Array = xp.reshape(values, (values.shape[0], -1))
    return flat


def decode(reduced: Reduced, rows: Sequence[Row], state: State) -> list[Prediction]:
    """Return one prediction for each row: the best spans over its windows. Training, evaluation and serving use it.

    A prediction is {text, score, start, end, span_text, null_score, n_best}: score is the probability among the n best,
    span_text the best span, also where it is withheld, null_score how much the null answer beats it by (the minimum
    over windows, as in Devlin et al. 2018).
    """
    row_of = reduced.get("row", np.empty(0, dtype=np.int64))  # window -> row
    order = np.argsort(row_of, kind="stable")
    bounds = np.searchsorted(row_of[order], np.arange(len(rows) + 1)).tolist()
    columns = [reduced[name][order].tolist() if len(order) else [] for name in ("start", "end", "score", "null_score")]
    own = ([column[first:last] for column in columns] for first, last in pairwise(bounds))
    return [_decode(windows, row["context"], state) for windows, row in zip(own, rows, strict=True)]


def _decode(windows: Sequence[Sequence[Any]], context: str, state: State) -> Prediction:
    """Return the prediction of a row, of starts, ends, scores and null score of each of its windows."""
    nothing = {**_candidate(context, (NO_SPAN, NO_SPAN), 0.0), "span_text": "", "null_score": 0.0, "n_best": []}
    *candidates, null_scores = windows
    spans: dict[tuple[int, int], float] = {}
    for start, end, score in zip(*map(chain.from_iterable, candidates), strict=True):
        if math.isfinite(score):
            span = _trim(context, start, end)
            if span[0] < span[1] and score > spans.get(span, -math.inf):
                spans[span] = score
    ranked = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[: state.n_best_size]
    if not ranked:
        return nothing
    null_score = min(null_scores)
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
    while start < end and context[start].isspace():
        start += 1
    while start < end and context[end - 1].isspace():
        end -= 1
    return start, end


def _candidate(context: str, span: tuple[int, int], score: float) -> Prediction:
    start, end = span
    return {"text": "" if start == NO_SPAN else context[start:end], "score": float(score), "start": start, "end": end}


def metrics(predictions: Sequence[Prediction], rows: Sequence[Row], _state: State) -> dict[str, float]:
    """Return those of `questions.measured`."""
    return measured(predictions, rows)


def calibrate(metrics: dict[str, float], state: State) -> State:
    """Return the state with the threshold of the best F1 on validation, where the data hold unanswerable questions."""
    return replace(state, null_threshold=metrics.get("calibrated_threshold", state.null_threshold))


def show(prediction: Prediction, row: Row) -> str:
    """Return the question, and the answer in [[ ]] within its sentence."""
    start, end, context = prediction["start"], prediction["end"], row["context"]
    if start == NO_SPAN:
        return f"Q: {row['question']}\nA: (no answer)"
    low = max(0, context.rfind(" ", 0, max(0, start - 60)))
    high = context.find(" ", min(len(context), end + 60))
    shown = f"{context[low:start]}[[{prediction['text']}]]{context[end : high if high >= 0 else None]}"
    return f"Q: {row['question']}\nA: … {shown.strip()} …"


def examine(prediction: Prediction, row: Row, _state: State) -> Examined:
    """Return F1 as in the official script, and as confidence the probability of the answer among the n best."""
    from finetune.tasks.question_answering.metrics import squad_scores

    start, end = prediction["start"], prediction["end"]
    gold = row["answers"] or {"text": [], "answer_start": []}
    placed = dict.fromkeys(zip(gold["answer_start"], gold["text"], strict=True))
    predicted = () if start == NO_SPAN else ((start, end, "predicted"),)
    annotated = row["answers"] is not None
    return Examined(
        id=row["id"],
        row=row["row"],
        score=100 * squad_scores(gold["text"], prediction["text"])[1] if annotated else None,
        confidence=prediction["score"],
        length=len(row["context"].split()),
        group=("HasAns" if gold["text"] else "NoAns") if annotated else "",
        title=row["question"],
        text=row["context"],
        marks=(*predicted, *((at, at + len(text), "gold") for at, text in placed)),
        predicted=prediction["text"],
        gold=tuple(dict.fromkeys(gold["text"])),
    )


def limits(state: State) -> list[str]:
    """Return what decoding rules out."""
    lines = [
        "An answer is a span of the given context; nothing is generated.",
        f"A longer context is read in windows of {state.max_seq_length} tokens, question included, "
        f"that share {state.doc_stride}.",
        f"An answer has at most {state.max_answer_length_in_tokens} tokens.",
    ]
    if not state.no_answer:
        return [*lines, "Every training question had an answer: the model never says that there is none."]
    return [
        *lines,
        f"An answer is withheld where the null answer beats it by more than {state.null_threshold:.4g}. That is the "
        "threshold with the best F1 on validation, best_f1; exact and f1 were measured with threshold 0.",
    ]


def present(prediction: Prediction) -> Json:
    """Return the answer as it is served."""
    return {"answer": prediction["text"], **{key: prediction[key] for key in ("score", "start", "end")}}


def tied(prediction: Prediction, served: Json, state: State, tolerance: float) -> bool:
    """Return whether the answer served is as good a choice: a null score at the threshold, a span as good as the best.

    A relative difference of two probabilities is a difference of their logits. A span that isn't among the n best has
    at most the score of the last of these; where there is but one, it isn't known how far it is ahead.
    """
    scores = {(c["start"], c["end"]): float(c["score"]) for c in prediction["n_best"]}
    spans = [score for (start, _), score in scores.items() if start != NO_SPAN]
    withheld, at_threshold = served["start"] == NO_SPAN, prediction["null_score"] - state.null_threshold
    if not spans or (withheld != (prediction["start"] == NO_SPAN) and abs(at_threshold) > tolerance):
        return False
    score = scores.get((served["start"], served["end"]), spans[-1] if len(spans) > 1 else 0.0)
    good = withheld or score >= spans[0] * (1 - tolerance)
    return good and math.isclose(score, served["score"], abs_tol=tolerance)
