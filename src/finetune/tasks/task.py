"""What a task is: a record of records of functions over rows, windows and predictions.

    file --read_table--> table --data.validate--> rows --data.encode--> windows --collate--> batch
    batch --objective.loss--> training        batch --answer--> reduced --decoding.decode--> predictions
    predictions --scoring.metrics--> numbers  --report.examine--> report.html  --serving.present--> what is served

A row is a dict as `data.validate` makes it; a window is one model input, several of which may come from one row.
Shapes: B windows in a batch, L tokens in a window.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.generic import ModelOutput

from finetune.core.types import Json
from finetune.data.batches import Batch, Columns
from finetune.data.table import Audit, Row, Table

Rows = Sequence[Row]
Prediction = Json
Reduced = Json  # name -> tensor, then array, first dimension B
Confusion = dict[str, dict[str, int]]  # gold class -> predicted class -> how many
Params = Any  # parameters of a component of this task


@dataclass(frozen=True, kw_only=True)
class State:
    """What encoding and decoding need. It travels in preprocess.json and in the config.json of the model.

    A task adds fields of its own.
    """

    max_seq_length: int
    pad_to_max_length: bool


S = TypeVar("S", bound=State)
Answer = Callable[[PreTrainedModel, Batch, S], Reduced]


@dataclass(frozen=True, kw_only=True)
class Examined:
    """One prediction beside its row, in terms that hold for every task."""

    id: str
    row: int
    score: float | None  # the main metric of this row alone, 0 to 100; None where there is no gold
    confidence: float | None  # 0 to 1
    length: int  # words of the input
    group: str  # kind of row that is also scored apart; "" where there is none
    title: str  # what was asked
    text: str  # what it was asked of, "" where the title is all there is
    marks: tuple[tuple[int, int, str], ...]  # (start, end, "predicted" or "gold") in the text, predicted ones first
    predicted: str
    gold: tuple[str, ...]  # right answers, any of which would do


@dataclass(frozen=True)
class Breakdown:
    """Where the metrics come from, by class; empty for tasks without classes."""

    classes: dict[str, dict[str, float]] = field(default_factory=dict)  # class -> metric -> value, support among them
    confusion: Confusion = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Data(Generic[S]):
    """Files -> rows -> windows."""

    validate: Callable[[Table, Params, Audit], list[Row]]
    """(table, parameters with the column names, audit) -> rows. Raises DataError for a missing column."""

    group: Callable[[Row], str]
    """Rows of one group never stand on two sides of a split."""

    grouped_by: str
    """What the rows of a group share."""

    gold: str
    """What annotators give to a row, in the plural."""

    has_gold: Callable[[Row], bool]

    pretokenized: bool
    """Whether the tokenizer is given words instead of text."""

    fit: Callable[[Params, Mapping[str, list[Row]], int, PreTrainedTokenizerFast], S]
    """(preprocess parameters, split -> rows, longest window of the model, tokenizer) -> state."""

    derived: Callable[[Params, S, Mapping[str, list[Row]]], list[str]]
    """(preprocess parameters, state, split -> rows) -> a line for what `fit` found in the data or changed."""

    encode: Callable[[Rows, PreTrainedTokenizerFast, S], Columns]
    """(rows, tokenizer, state) -> one column per model input, plus what decoding needs; a "row" column says whose."""

    label: Callable[[Rows, Columns, S], tuple[Columns, set[int]]]
    """(rows with gold, encoded, state) -> the columns of labels, and the rows that training can't learn from."""

    unlearnable: str
    """Why such a row is dropped."""

    windowless: str
    """What becomes of a row without any window that is not for training."""

    decode_columns: frozenset[str]
    """Columns that only decoding reads; training windows go without."""

    padding: Callable[[PreTrainedTokenizerFast], dict[str, int]]
    """(tokenizer) -> value that fills each column of lists."""

    kinds: Callable[[Row], Collection[str]]
    """(row) -> the kinds of rows that it is one of: the proof of a saved model covers each."""


@dataclass(frozen=True, kw_only=True)
class Model(Generic[S]):
    """The class that is finetuned, and its head."""

    auto_model: Any
    """The transformers auto class that finetuning loads."""

    families: Mapping[Any, Any]
    """Config classes -> model classes that have the head."""

    inputs: frozenset[str]
    """Columns that may go into the model's forward."""

    head_config: Callable[[S | None], Json]
    """(state or None) -> the values of config.json that shape the head; none where only the data can tell."""

    adopt: Callable[[S, PreTrainedConfig], S]
    """(state, config of a model that wasn't finetuned here) -> the state with what that config knows better."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What training minimises: the sum of the losses of all items of a step, divided by their number."""

    labels: frozenset[str]
    """Columns of labels; a batch without them has no loss."""

    loss: Callable[[ModelOutput, Batch], torch.Tensor]
    """(outputs, batch) -> (B,) fp32: the loss of each window, summed over its items."""

    items: Callable[[Batch], torch.Tensor]
    """(batch) -> (B,): how many items each window's loss is the sum of."""


@dataclass(frozen=True, kw_only=True)
class Decoding(Generic[S]):
    """Reduced results -> predictions. The one decoder of training, evaluation and serving."""

    compact: Callable[[Reduced], Reduced]
    """(reduced as NumPy arrays) -> the same without padding."""

    keep_batches: Callable[[Params], int]
    """(finetune or evaluation parameters) -> batches whose reduced results move to the CPU together."""

    decode: Callable[[Reduced, Rows, S], list[Prediction]]
    """(compact reduced, rows, state) -> one prediction for each row, the empty one for a row without a window."""

    calibrate: Callable[[dict[str, float], S], S]
    """(metrics of the best model on validation, state) -> the state to decode with from then on."""

    request_fields: tuple[str, ...]
    """Fields of the state that a request to the served model, or the evaluation component, may override."""


@dataclass(frozen=True, kw_only=True)
class Scoring(Generic[S]):
    """Predictions and gold -> numbers."""

    refuse: Callable[[Rows, S], None]
    """(rows to score, state) -> nothing. Raises DataError for gold that can't be compared with what is predicted."""

    metrics: Callable[[Sequence[Prediction], Rows, S], dict[str, float]]

    breakdown: Callable[[Sequence[Prediction], Rows, S], Breakdown]
    """(predictions, rows, state) -> the metrics of each class."""

    needed: Callable[[Prediction], Prediction]
    """What `metrics` and `breakdown` read of a prediction: all that evaluation keeps of it."""

    main_metric: Callable[[S], str]
    """(state) -> the metric to show first."""

    hub_metrics: dict[str, str]
    """The metrics that describe a model -> what the Hugging Face hub calls them."""

    full_score: float
    """The highest value of these metrics."""


@dataclass(frozen=True, kw_only=True)
class Serving(Generic[S]):
    """What the MLflow model takes and gives."""

    inputs: dict[str, Json]
    """Input columns -> types as in MLflow's JSON."""

    outputs: dict[str, Json]
    """Output columns -> types as in MLflow's JSON."""

    example: Row
    """One record of the input columns."""

    accepts: Callable[[object], bool]
    """Whether a value may stand in an input column."""

    accepted: str
    """Which values those are."""

    rows: Callable[[Sequence[Row]], list[Row]]
    """(records of the input columns) -> rows."""

    request: Callable[[Row], Json]
    """A row as a record of the input columns."""

    present: Callable[[Prediction], Json]
    """One prediction as a record of the output columns."""

    tied: Callable[[Prediction, Json, S, float], bool]
    """(prediction, what another computation of the same model presents, state, tolerance) -> whether that is an answer
    which the predicted one beats by no more than the tolerance, so that rounding decides between them."""


@dataclass(frozen=True, kw_only=True)
class Report(Generic[S]):
    """How a prediction is shown."""

    examine: Callable[[Prediction, Row, S], Examined]
    """(prediction, row, state) -> what the report shows of a prediction."""

    show: Callable[[Prediction, Row], str]
    """One prediction, marked in its text, for a terminal."""


@dataclass(frozen=True, kw_only=True)
class Card(Generic[S]):
    """What the model card says of the task."""

    pipeline_tag: str
    """The hub's name of the task."""

    usage: str
    """Lines of Python that use `model` and `tokenizer`."""

    limits: Callable[[S], list[str]]
    """(state) -> what the model can't do, a sentence each."""


@dataclass(frozen=True, kw_only=True)
class Task(Generic[S]):
    """One task, generic in its State."""

    name: str

    state: Callable[..., S]
    """(**stored) -> state, from what preprocess.json or config.json holds."""

    data: Data[S]
    model: Model[S]
    objective: Objective

    answer: Answer[S]
    """(model, batch, state) -> the reduced results of a batch: small tensors on the device, B first, negative where a
    second dimension is padded; with the loss and the items of each window where the batch has labels.

    Evaluation during training, the evaluation component and the served model all call it. A task whose model reads
    makes it by `answering.by_forward`; one whose model writes calls `model.generate` here, and nothing else differs."""

    decoding: Decoding[S]
    scoring: Scoring[S]
    serving: Serving[S]
    report: Report[S]
    card: Card[S]
