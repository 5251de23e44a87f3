"""The task of token classification: a tag for every word, of entities (IOB and its kin) or of parts of speech."""

from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, AutoModelForTokenClassification, is_torch_available

from finetune.tasks.answering import by_forward
from finetune.tasks.task import Card, Data, Decoding, Model, Published, Report, Scoring, Serving, Task
from finetune.tasks.token_classification import objective, rows, tags, windows

if is_torch_available():  # a model in OpenVINO is served without
    from finetune.tasks.token_classification import heads

    heads.register()

USAGE = """\
words = ["Ada", "Lovelace", "lived", "in", "London", "."]
inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
classes = model(**inputs).logits[0].argmax(-1).tolist()
for token, word in enumerate(inputs.word_ids(0)):
    if word is not None and word != inputs.word_ids(0)[token - 1]:  # its first token speaks for a word
        print(words[word], model.config.id2label[classes[token]])
"""

WORDS, NUMBERS = {"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "double"}}

INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
OBJECTIVE = objective.objective()

TASK = Task(
    name="token_classification",
    state=windows.State,
    data=Data(
        validate=rows.validate,
        group=lambda row: " ".join(row["tokens"]),
        grouped_by="sentence",
        gold="tags",
        has_gold=rows.has_gold,
        pretokenized=True,
        aligned=True,
        fit=lambda params, rows, model: windows.fit(params, rows, model.longest_window, model.tokenizer),
        derived=windows.derived,
        encode=windows.encode,
        label=windows.label,
        unanswerable=windows.unanswerable,
        gold_lengths=lambda _windows: [],
        beyond=lambda _lengths, _state: [],
        characters=lambda row: sum(map(len, row["tokens"])),
        decode_columns=frozenset({"row", "word"}),
        damage=rows.damage,
        padding=windows.padding,
        kinds=rows.kinds,
    ),
    model=Model(
        auto_model=lambda _config: AutoModelForTokenClassification,
        families=MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        inputs=INPUTS,
        head_config=windows.head_config,
        adopt=windows.adopt,
    ),
    objective=OBJECTIVE,
    weigh=objective.weigh,
    answer=by_forward(INPUTS, OBJECTIVE, tags.reduce),
    reduce=tags.reduce,
    decoding=Decoding(
        compact=tags.compact,
        decode=lambda reduced, rows, state, _tokenizer: tags.decode(reduced, rows, state),
        calibrate=lambda _metrics, state: state,
        request_fields=(),
    ),
    scoring=Scoring(
        refuse=windows.refuse,
        lacking=windows.lacking,
        metrics=tags.metrics,
        breakdown=tags.breakdown,
        published=Published(metrics=tags.published, names=tags.PUBLISHED, options={}),
        needed=lambda prediction: {"tags": prediction["tags"]},
        main_metric=lambda state: "f1" if state.scheme else "accuracy",
        hub_metrics={"f1": "f1", "precision": "precision", "recall": "recall", "accuracy": "accuracy"},
        full_score=1.0,
    ),
    serving=Serving(
        inputs={"input_string": {"type": "any"}},
        others=lambda _state: {"tokens": "input_string", "text": "input_string"},
        spare=frozenset({"text"}),
        cell=rows.cell,
        outputs={
            "tags": WORDS,  # first: what compares a model with gold on Azure takes the first column
            "words": WORDS,
            "scores": NUMBERS,
            "spans": {"type": "array", "items": {"type": "array", "items": {"type": "long"}}},
            "entities": {"type": "any"},
        },
        example={"input_string": "Ada Lovelace lived in London."},
        accepts=rows.accepts,
        accepted="text or a list of words",
        forms='several texts are {"inputs": ["Ada lives.", "So does Bob."]}, or a record each; words are {"inputs": '
        '[["Ada", "lives"]]}, or {"input_string": ["Ada", "lives"]} in a record, and words that hold spaces '
        '{"input_string": [["New York", "is"]]} in a record',
        rows=rows.serve,
        request=rows.request,
        present=tags.present,
        tied=tags.tied,
    ),
    report=Report(examine=tags.examine, show=tags.show),
    card=Card(pipeline_tag="token-classification", usage=lambda _state: USAGE, limits=tags.limits),
)
