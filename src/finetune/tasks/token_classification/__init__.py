"""Token classification: a tag for every word, of entities (IOB and its kin) or of parts of speech."""

from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, AutoModelForTokenClassification

from finetune.tasks.task import Card, Served, Task
from finetune.tasks.token_classification import heads, rows, tags, windows

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

TASK = Task(
    name="token_classification",
    auto_model=AutoModelForTokenClassification,
    families=MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    head=windows.head,
    adopt=windows.adopt,
    pretokenized=True,
    validate=rows.validate,
    group=lambda row: " ".join(row["tokens"]),
    grouped_by="sentence",
    fit=windows.fit,
    derived=windows.derived,
    state=windows.State,
    inference_params=(),
    encode=windows.encode,
    label=windows.label,
    decode_columns=frozenset({"row", "word"}),
    model_inputs=frozenset({"input_ids", "attention_mask", "token_type_ids"}),
    labels=frozenset({"labels"}),
    unlearnable="none of its words gives a token",
    windowless="none of its words gives a token, so all get the tag of such words",
    padding=windows.padding,
    items=tags.items,
    loss=tags.loss,
    reduce=tags.reduce,
    compact=tags.compact,
    keep_batches=lambda _params: 1,
    decode=tags.decode,
    gold="tags",
    has_gold=rows.has_gold,
    refuse=windows.refuse,
    metrics=tags.metrics,
    breakdown=tags.breakdown,
    for_metrics=lambda prediction: {"tags": prediction["tags"]},
    calibrate=lambda _metrics, state: state,
    head_metric=lambda state: "f1" if state.scheme else "accuracy",
    hub_metrics={"f1": "f1", "precision": "precision", "recall": "recall", "accuracy": "accuracy"},
    full_score=1.0,
    examine=tags.examine,
    show=tags.show,
    served=Served(
        inputs={"input_string": {"type": "any"}},
        outputs={
            "words": WORDS,
            "tags": WORDS,
            "scores": NUMBERS,
            "spans": {"type": "array", "items": {"type": "array", "items": {"type": "long"}}},
            "entities": {"type": "any"},
        },
        example={"input_string": "Ada Lovelace lived in London."},
        accepts=rows.accepts,
        accepted="text or a list of words",
        rows=rows.serve,
        request=lambda row: {"input_string": row["tokens"]},
        present=tags.present,
    ),
    card=Card(pipeline_tag="token-classification", usage=USAGE, limits=tags.limits),
)
