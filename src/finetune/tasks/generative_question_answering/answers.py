"""Predictions of written answers: decoded, scored, shown and served."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerFast

from finetune.core.types import Json
from finetune.data.table import Row
from finetune.tasks.generation import writing
from finetune.tasks.generative_question_answering.prompts import State, filled
from finetune.tasks.question_answering.questions import measured
from finetune.tasks.task import Examined, Prediction, Reduced

NONE: Prediction = {"text": "", "score": 0.0, "span_text": "", "null_score": 0.0, "margin": 0.0, "tokens": 0}


def decode(reduced: Reduced, rows: Sequence[Row], state: State, tokenizer: PreTrainedTokenizerFast) -> list[Prediction]:
    """Return one prediction for each row: the most probable answer over its windows.

    A prediction is {text, score, span_text, null_score, margin, tokens}: score is the probability of all tokens of the
    text, span_text the best answer, also where it is withheld, null_score by how much the log-probability of no answer
    (the minimum over windows, as in Devlin et al. 2018) beats that of the answer, and margin by how much the least
    certain choice was made, of a token or of a window.
    """
    row_of = reduced.get("row", np.empty(0, dtype=np.int64))  # window -> row
    texts = writing.texts(reduced, tokenizer) if len(row_of) else []
    order = np.argsort(row_of, kind="stable")
    bounds = np.searchsorted(row_of[order], np.arange(len(rows) + 1))
    return [_decode(reduced, texts, order[bounds[i] : bounds[i + 1]], state) for i in range(len(rows))]


def _decode(reduced: Reduced, texts: Sequence[str], windows: np.ndarray, state: State) -> Prediction:
    """Return the prediction of a row from its windows."""
    probable = reduced["log_probability"]
    ranked = sorted((i for i in windows if texts[i]), key=lambda i: -probable[i])
    if not ranked:
        return dict(NONE)
    best = ranked[0]
    others = [float(probable[best] - probable[i]) for i in ranked if texts[i] != texts[best]]
    empty = float(reduced["empty"][windows].min())
    null_score = empty - float(probable[best])
    withheld = state.no_answer and null_score > state.null_threshold
    return {
        "text": "" if withheld else texts[best],
        "score": math.exp(min(0.0, empty if withheld else float(probable[best]))),
        "span_text": texts[best],
        "null_score": null_score,
        "margin": min([float(reduced["margin"][best]), *others]),
        "tokens": len(reduced["tokens"][best]),
    }


def needed(prediction: Prediction) -> Prediction:
    """Return what the metrics read of a prediction."""
    return {name: prediction[name] for name in ("text", "span_text", "null_score", "tokens")}


def metrics(predictions: Sequence[Prediction], rows: Sequence[Row], _state: State) -> dict[str, float]:
    """Return the metrics of extractive question answering, and gen_len, the mean tokens of an answer."""
    return {**measured(predictions, rows), "gen_len": sum(p["tokens"] for p in predictions) / len(predictions)}


def calibrate(metrics: dict[str, float], state: State) -> State:
    """Return the state with the threshold of the best F1 on validation, where the data hold unanswerable questions."""
    return replace(state, null_threshold=metrics.get("calibrated_threshold", state.null_threshold))


def show(prediction: Prediction, row: Row) -> str:
    """Return question and answer for a terminal."""
    return f"Q: {row['question']}\nA: {prediction['text'] or '(no answer)'}"


def examine(prediction: Prediction, row: Row, _state: State) -> Examined:
    """Return F1 as in the official script, the probability of the answer, and where it is quoted."""
    from finetune.tasks.question_answering.metrics import squad_scores

    context, annotated = row["context"], row["answers"] is not None
    gold = tuple(dict.fromkeys(row["answers"]["text"])) if annotated else ()
    quoted = [(prediction["text"], "predicted"), *((text, "gold") for text in gold)]
    places = [(context.find(text), text, kind) for text, kind in quoted if text]
    return Examined(
        id=row["id"],
        row=row["row"],
        score=100 * squad_scores(gold, prediction["text"])[1] if annotated else None,
        confidence=prediction["score"],
        length=len(context.split()),
        group=("HasAns" if gold else "NoAns") if annotated else "",
        title=row["question"],
        text=context,
        marks=tuple((at, at + len(text), kind) for at, text, kind in places if at >= 0),
        predicted=prediction["text"],
        gold=gold,
    )


def present(prediction: Prediction) -> Json:
    return {"answer": prediction["text"], "score": prediction["score"]}


def tied(prediction: Prediction, _served: Json, state: State, tolerance: float) -> bool:
    """Return whether rounding may have chosen another token or window, or withheld the answer or not."""
    at_threshold = state.no_answer and abs(prediction["null_score"] - state.null_threshold) <= tolerance
    return bool(at_threshold or prediction["margin"] <= tolerance)


def limits(state: State) -> list[str]:
    """Return what the model can't do."""
    lines = [
        "An answer is written, not quoted: it may say what the context doesn't.",
        f"A longer context is read in windows of {state.room} tokens, question included, that share "
        f"{state.doc_stride}; each is answered by itself, and the most probable answer is given.",
        f"An answer has at most {state.max_target_length} tokens.",
    ]
    if not state.no_answer:
        return [*lines, "Every training question had an answer: the model never says that there is none."]
    return [
        *lines,
        "An answer is withheld where the log-probability of none beats its own by more than "
        f"{state.null_threshold:.4g}. That is the threshold with the best F1 on validation, best_f1; exact and f1 were "
        "measured with threshold 0.",
    ]


def usage(state: State) -> str:
    """Return how to answer with transformers alone."""
    question, context = "Who wrote the report?", "The report was written by Ada Lovelace in 1843."
    prompt = filled(state.prompt_template, question, context)
    behind = "[0]" if state.reads else '[0, inputs["input_ids"].shape[1] :]'
    return "\n".join(
        [
            f'inputs = tokenizer({prompt!r}, return_tensors="pt")',
            f"answer = model.generate(**inputs){behind}",
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
            "",
        ]
    )
