"""The task of extractive question answering: the best span of a context for each question."""

from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING, AutoModelForQuestionAnswering

from finetune.tasks.answering import by_forward
from finetune.tasks.question_answering import questions, rows, spans, windows
from finetune.tasks.question_answering.objective import OBJECTIVE
from finetune.tasks.task import Card, Data, Decoding, Model, Report, Task

USAGE = """\
inputs = tokenizer("Who wrote the report?", "The report was written by Ada Lovelace in 1843.", return_tensors="pt")
outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
"""

INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})

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
        auto_model=lambda _config: AutoModelForQuestionAnswering,
        families=MODEL_FOR_QUESTION_ANSWERING_MAPPING,
        inputs=INPUTS,
        head_config=lambda _state: {"num_labels": 2},
        adopt=lambda state, _config: state,
    ),
    objective=OBJECTIVE,
    answer=by_forward(INPUTS, OBJECTIVE, spans.reduce),
    reduce=spans.reduce,
    decoding=Decoding(
        compact=lambda reduced: reduced,
        decode=lambda reduced, rows, state, _tokenizer: spans.decode(reduced, rows, state),
        calibrate=spans.calibrate,
        request_fields=("null_threshold",),
    ),
    scoring=questions.scoring(
        spans.metrics, needed=lambda prediction: {key: prediction[key] for key in ("text", "span_text", "null_score")}
    ),
    serving=questions.serving(
        outputs={
            "answer": {"type": "string"},
            "score": {"type": "double"},
            "start": {"type": "long"},
            "end": {"type": "long"},
        },
        present=spans.present,
        tied=spans.tied,
    ),
    report=Report(examine=spans.examine, show=spans.show),
    card=Card(pipeline_tag="question-answering", usage=lambda _state: USAGE, limits=spans.limits),
)
