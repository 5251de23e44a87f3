"""What the tasks share that answer questions about a context: how answers are scored, and how questions are served."""

from array import array
from collections.abc import Callable, Sequence

from finetune.core.types import Json
from finetune.data.table import Row
from finetune.tasks.question_answering import rows
from finetune.tasks.task import Breakdown, Prediction, Published, S, Scoring, Serving


def measured(predictions: Sequence[Prediction], rows: Sequence[Row]) -> dict[str, float]:
    """Return exact, f1, total, HasAns_*, NoAns_*, and with unanswerable rows best_* and calibrated_threshold.

    They are read off text, span_text, which is the best answer also where it is withheld, and null_score, by how much
    no answer beats it.
    """
    from finetune.tasks.question_answering.metrics import amid, official

    result = official(predictions, (row["answers"]["text"] for row in rows))
    if "best_f1_thresh" in result:
        no_answer = array("d", (p["null_score"] for p in predictions))
        result["calibrated_threshold"] = amid(no_answer, result["best_f1_thresh"])
    return result


def _published(predictions: Sequence[Prediction], rows: Sequence[Row], options: Json) -> dict[str, float]:
    """Return exact_match and f1_score as the published evaluation component has them."""
    from finetune.tasks.question_answering import metrics as of_texts

    return of_texts.published((p["text"] for p in predictions), (row["answers"]["text"] for row in rows), options)


def scoring(
    metrics: Callable[[Sequence[Prediction], Sequence[Row], S], dict[str, float]],
    needed: Callable[[Prediction], Prediction],
) -> Scoring[S]:
    """Return how answers are scored: by `metrics`, which read `needed` of a prediction."""
    return Scoring(
        refuse=lambda _rows, _state: None,
        lacking=lambda _rows, _state: {},
        metrics=metrics,
        breakdown=lambda _predictions, _rows, _state: Breakdown(),
        published=Published(
            metrics=lambda predictions, rows, _state, options: _published(predictions, rows, options),
            names=("exact_match", "f1_score"),
            options={
                "regexes_to_ignore": list[str],
                **dict.fromkeys(("ignore_case", "ignore_numbers", "ignore_punctuation", "ignore_punctuations"), bool),
            },
        ),
        needed=needed,
        main_metric=lambda _state: "f1",
        hub_metrics={"exact": "exact_match", "f1": "f1"},
        full_score=100.0,
    )


def serving(
    outputs: dict[str, Json],
    present: Callable[[Prediction], Json],
    tied: Callable[[Prediction, Json, S, float], bool],
) -> Serving[S]:
    """Return how questions are served, with these columns of the answer."""
    return Serving(
        inputs={"question": {"type": "string"}, "context": {"type": "string"}},
        others=lambda _state: {},
        spare=frozenset(),
        cell=lambda _name, text: text,
        outputs=outputs,
        example={"question": "Who wrote the report?", "context": "The report was written by Ada Lovelace in 1843."},
        accepts=lambda value: isinstance(value, str),
        accepted="text",
        forms='one question and its context in each record, or {"inputs": {"question": ["Who?", "When?"], "context": '
        '["Ada wrote it.", "It was in 1843."]}}',
        rows=rows.serve,
        request=lambda row: {"question": row["question"], "context": row["context"]},
        present=present,
        tied=tied,
    )
