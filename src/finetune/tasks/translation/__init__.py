"""The task of translation: a text of one language, written in another."""

from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoModelForSeq2SeqLM

from finetune.tasks.generation import targets, writing
from finetune.tasks.generation.objective import objective, weigh
from finetune.tasks.task import Card, Data, Decoding, Model, Published, Report, Scoring, Serving, Task
from finetune.tasks.translation import metrics, pairs, rows, texts

OBJECTIVE = objective()

TASK = Task(
    name="translation",
    state=pairs.State,
    data=Data(
        validate=rows.validate,
        group=lambda row: str(row["source"]),
        grouped_by="source text",
        gold="targets",
        has_gold=rows.has_gold,
        pretokenized=False,
        aligned=False,
        fit=pairs.fit,
        derived=pairs.derived,
        encode=pairs.encode,
        label=pairs.label,
        unanswerable=pairs.unanswerable,
        gold_lengths=targets.lengths,
        beyond=pairs.beyond,
        characters=lambda row: len(row["source"]) + len(row["target"] or ""),
        decode_columns=frozenset({"row", "source_tokens"}) | targets.COLUMNS,
        damage=rows.damage,
        padding=targets.padding,
        kinds=rows.kinds,
    ),
    model=Model(
        auto_model=lambda _config: AutoModelForSeq2SeqLM,
        families=MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        inputs=writing.INPUTS,
        head_config=lambda _state: {},
        adopt=pairs.adopt,
        configure=writing.configure,
    ),
    objective=OBJECTIVE,
    weigh=weigh,
    answer=writing.by_generation(OBJECTIVE),
    decoding=Decoding(
        compact=writing.compact,
        written=writing.count_written,
        decode=texts.decode,
        calibrate=lambda _metrics, state: state,
        request_fields=("source_lang", "target_lang", "num_beams"),
        asked=pairs.asked,
    ),
    scoring=Scoring(
        refuse=lambda _rows, _state: None,
        lacking=lambda _rows, _state: {},
        metrics=texts.metrics,
        costly=texts.costly,
        breakdown=texts.breakdown,
        published=Published(metrics=texts.published, names=tuple(f"bleu_{n}" for n in metrics.ORDERS), options={}),
        needed=texts.needed,
        described=lambda state: {"sacrebleu": metrics.signatures(state.target_lang)},
        main_metric=lambda _state: "bleu",
        hub_metrics={"bleu": "bleu", "chrf": "chrf"},
        full_score=100.0,
    ),
    serving=Serving(
        inputs={"input_string": {"type": "string"}},
        others=lambda state: {state.source_lang: "input_string"},
        spare=frozenset(),
        cell=lambda _name, text: text,
        outputs={"translation": {"type": "string"}, "score": {"type": "double"}},
        example={"input_string": "The report was written in 1843."},
        accepts=lambda value: isinstance(value, str),
        accepted="text",
        forms='several texts are {"inputs": ["One.", "Two."]}, or a record each',
        rows=rows.serve,
        request=lambda row: {"input_string": row["source"]},
        present=texts.present,
        tied=texts.tied,
    ),
    report=Report(examine=texts.examine, show=texts.show),
    card=Card(pipeline_tag="translation", usage=texts.usage, limits=texts.limits),
)
