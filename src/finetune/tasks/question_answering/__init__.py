"""Extractive question answering: the best span of a context for each question."""

from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING, AutoModelForQuestionAnswering

from finetune.tasks.question_answering import rows, spans, windows
from finetune.tasks.task import Breakdown, Card, Served, Task

USAGE = """\
inputs = tokenizer("Who wrote the report?", "The report was written by Ada Lovelace in 1843.", return_tensors="pt")
outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
"""

TASK = Task(
    name="question_answering",
    auto_model=AutoModelForQuestionAnswering,
    families=MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    head=lambda _state: {"num_labels": 2},
    adopt=lambda state, _config: state,
    pretokenized=False,
    validate=rows.validate,
    group=lambda row: row["context"],
    grouped_by="context",
    fit=windows.fit,
    derived=windows.derived,
    state=windows.State,
    inference_params=("null_threshold",),
    encode=windows.encode,
    label=windows.label,
    decode_columns=frozenset({"row", "null_position", "offset_start", "offset_end"}),
    model_inputs=frozenset({"input_ids", "attention_mask", "token_type_ids"}),
    labels=frozenset({"start_positions", "end_positions"}),
    unlearnable="the question is too long for a window, or no window holds the whole answer",
    windowless="gives no window, so its prediction is empty",
    padding=windows.padding,
    items=spans.items,
    loss=spans.loss,
    reduce=spans.reduce,
    compact=lambda reduced: reduced,
    keep_batches=lambda params: params.eval_accumulation_steps,
    decode=spans.decode,
    gold="answers",
    has_gold=rows.has_gold,
    refuse=lambda _rows, _state: None,
    metrics=spans.metrics,
    breakdown=lambda _predictions, _rows, _state: Breakdown(),
    for_metrics=lambda prediction: {key: prediction[key] for key in ("text", "span_text", "null_score")},
    calibrate=spans.calibrate,
    head_metric=lambda _state: "f1",
    hub_metrics={"exact": "exact_match", "f1": "f1"},
    full_score=100.0,
    examine=spans.examine,
    show=spans.show,
    served=Served(
        inputs={"question": {"type": "string"}, "context": {"type": "string"}},
        outputs={
            "answer": {"type": "string"},
            "score": {"type": "double"},
            "start": {"type": "long"},
            "end": {"type": "long"},
        },
        example={"question": "Who wrote the report?", "context": "The report was written by Ada Lovelace in 1843."},
        accepts=lambda value: isinstance(value, str),
        accepted="text",
        rows=rows.serve,
        request=lambda row: {"question": row["question"], "context": row["context"]},
        present=spans.present,
    ),
    card=Card(pipeline_tag="question-answering", usage=USAGE, limits=spans.limits),
)
