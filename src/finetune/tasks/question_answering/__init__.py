"""The task of extractive question answering: the best span of a context for each question."""

from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING, AutoModelForQuestionAnswering

from finetune.tasks.answering import by_forward
from finetune.tasks.question_answering import rows, spans, windows
from finetune.tasks.task import (
    Breakdown,
    Card,
    Data,
    Decoding,
    Model,
    Objective,
    Published,
    Report,
    Scoring,
    Serving,
    Task,
)

USAGE = """\
inputs = tokenizer("Who wrote the report?", "The report was written by Ada Lovelace in 1843.", return_tensors="pt")
outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
"""

INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
OBJECTIVE = Objective(labels=frozenset({"start_positions", "end_positions"}), loss=spans.loss, items=spans.items)

TASK = Task(
    name="question_answering",
    state=windows.State,
    data=Data(
        validate=rows.validate,
        group=lambda row: str(row["context"]),
        grouped_by="context",
        gold="answers",
        has_gold=rows.has_gold,
        pretokenized=False,
        aligned=True,
        fit=lambda params, rows, model: windows.fit(params, rows, model.longest_window, model.tokenizer),
        derived=windows.derived,
        encode=windows.encode,
        label=windows.label,
        unanswerable=windows.unanswerable,
        gold_lengths=windows.gold_lengths,
        beyond=windows.beyond,
        characters=lambda row: len(row["question"]) + len(row["context"]),
        decode_columns=frozenset({"row", "null_position", "offset_start", "offset_end", "token_end"}),
        damage=rows.damage,
        padding=windows.padding,
        kinds=rows.kinds,
    ),
    model=Model(
        auto_model=AutoModelForQuestionAnswering,
        families=MODEL_FOR_QUESTION_ANSWERING_MAPPING,
        inputs=INPUTS,
        head_config=lambda _state: {"num_labels": 2},
        adopt=lambda state, _config: state,
    ),
    objective=OBJECTIVE,
    answer=by_forward(INPUTS, OBJECTIVE, spans.reduce),
    decoding=Decoding(
        compact=lambda reduced: reduced,
        decode=lambda reduced, rows, state, _tokenizer: spans.decode(reduced, rows, state),
        calibrate=spans.calibrate,
        request_fields=("null_threshold",),
    ),
    scoring=Scoring(
        refuse=lambda _rows, _state: None,
        lacking=lambda _rows, _state: {},
        metrics=spans.metrics,
        breakdown=lambda _predictions, _rows, _state: Breakdown(),
        published=Published(
            metrics=spans.published,
            names=("exact_match", "f1_score"),
            options={
                "regexes_to_ignore": list[str],
                **dict.fromkeys(("ignore_case", "ignore_numbers", "ignore_punctuation", "ignore_punctuations"), bool),
            },
        ),
        needed=lambda prediction: {key: prediction[key] for key in ("text", "span_text", "null_score")},
        main_metric=lambda _state: "f1",
        hub_metrics={"exact": "exact_match", "f1": "f1"},
        full_score=100.0,
    ),
    serving=Serving(
        inputs={"question": {"type": "string"}, "context": {"type": "string"}},
        others=lambda _state: {},
        spare=frozenset(),
        cell=lambda _name, text: text,
        outputs={
            "answer": {"type": "string"},
            "score": {"type": "double"},
            "start": {"type": "long"},
            "end": {"type": "long"},
        },
        example={"question": "Who wrote the report?", "context": "The report was written by Ada Lovelace in 1843."},
        accepts=lambda value: isinstance(value, str),
        accepted="text",
        forms='one question and its context in each record, or {"inputs": {"question": ["Who?", "When?"], "context": '
        '["Ada wrote it.", "It was in 1843."]}}',
        rows=rows.serve,
        request=lambda row: {"question": row["question"], "context": row["context"]},
        present=spans.present,
        tied=spans.tied,
    ),
    report=Report(examine=spans.examine, show=spans.show),
    card=Card(pipeline_tag="question-answering", usage=lambda _state: USAGE, limits=spans.limits),
)
