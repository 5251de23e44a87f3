"""What a task is: a record of functions over rows, windows and predictions.

    file --read_table--> table --validate--> rows --encode--> windows --collate--> batch --model--> outputs
    outputs --loss--> training            outputs --reduce--> reduced --decode--> predictions --metrics--> numbers

A row is a dict as `validate` makes it; a window is one model input, several of which may come from one row. Shapes:
B windows in a batch, L tokens in a window.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.data.batches import Batch, Columns
from finetune.data.tables import Audit, Row, Table

Reduced = dict[str, Any]  # name -> tensor, first dimension B
Prediction = dict[str, Any]
Confusion = dict[str, dict[str, int]]  # gold class -> predicted class -> how many


@dataclass(frozen=True, kw_only=True)
class Examined:
    """One prediction beside its row, in terms that hold for every task."""

    id: str
    row: int
    score: float | None  # the head metric of this row alone, 0 to 100; None where there is no gold
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
class Served:
    """What the MLflow model takes and gives."""

    inputs: dict[str, dict[str, Any]]
    """Input columns -> types as in MLflow's JSON."""

    outputs: dict[str, dict[str, Any]]
    """Output columns -> types as in MLflow's JSON."""

    example: Row
    """One record of the input columns."""

    accepts: Callable[[Any], bool]
    """Whether a value may stand in an input column."""

    accepted: str
    """Which values those are."""

    rows: Callable[[Sequence[Row]], list[Row]]
    """(records of the input columns) -> rows."""

    request: Callable[[Row], dict[str, Any]]
    """A row as a record of the input columns."""

    present: Callable[[Prediction], dict[str, Any]]
    """One prediction as a record of the output columns."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the model card says of the task."""

    pipeline_tag: str
    """The hub's name of the task."""

    usage: str
    """Lines of Python that use `model` and `tokenizer`."""

    limits: Callable[[Any], list[str]]
    """(state) -> what the model can't do, a sentence each."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. `State` is a frozen dataclass of the task: what encoding and decoding need, stored in config.json.

    It has at least max_seq_length and pad_to_max_length.
    """

    name: str
    auto_model: Any
    """The transformers auto class that finetuning loads."""

    families: Any
    """Mapping of config classes to model classes that have the head."""

    head: Callable[[Any], dict[str, Any]]
    """(state or None) -> the values of config.json that shape the head; none where only the data can tell."""

    adopt: Callable[[Any, Any], Any]
    """(state, config of a model that wasn't finetuned here) -> the state with what that config knows better."""

    pretokenized: bool
    """Whether the tokenizer is given words instead of text."""

    validate: Callable[[Table, Any, Audit], list[Row]]
    """(table, parameters with the column names, audit) -> rows. Raises DataError for a missing column."""

    group: Callable[[Row], str]
    """Rows of one group never stand on two sides of a split."""

    grouped_by: str
    """What the rows of a group share."""

    fit: Callable[[Any, Mapping[str, list[Row]], int, Any], Any]
    """(preprocess parameters, split -> rows, longest window of the model, tokenizer) -> state."""

    derived: Callable[[Any, Any, Mapping[str, list[Row]]], list[str]]
    """(preprocess parameters, state, split -> rows) -> a line for what `fit` found in the data or changed."""

    state: Callable[..., Any]
    """(**stored) -> state, from what preprocess.json or config.json holds."""

    inference_params: tuple[str, ...]
    """Fields of the state that a request to the served model, or the evaluation component, may override."""

    encode: Callable[[Sequence[Row], Any, Any], Columns]
    """(rows, tokenizer, state) -> one column per model input, plus what decoding needs; a "row" column says whose."""

    label: Callable[[Sequence[Row], Columns, Any], tuple[Columns, set[int]]]
    """(rows with gold, encoded, state) -> the columns of labels, and the rows that training can't learn from."""

    unlearnable: str
    """Why such a row is dropped."""

    windowless: str
    """What becomes of a row without any window that is not for training."""

    decode_columns: frozenset[str]
    """Columns that only `reduce` reads; training windows go without."""

    padding: Callable[[Any], dict[str, int]]
    """(tokenizer) -> value that fills each column of lists."""

    model_inputs: frozenset[str]
    """Columns that may go into the model's forward."""

    labels: frozenset[str]
    """Columns of labels; a batch without them has no loss."""

    loss: Callable[[Any, Batch], Any]
    """(outputs, batch) -> (B,) fp32: the loss of each window, summed over its items."""

    items: Callable[[Batch], Any]
    """(batch) -> (B,): how many items each window's loss is the sum of. The training loss is the mean over items."""

    reduce: Callable[[Any, Batch, Any], Reduced]
    """(outputs, batch, state) -> small tensors on the device, B first; negative where a second dimension is padded."""

    compact: Callable[[Reduced], Reduced]
    """(reduced as NumPy arrays) -> the same without padding."""

    keep_batches: Callable[[Any], int]
    """(finetune or evaluation parameters) -> batches whose reduced outputs move to the CPU together."""

    decode: Callable[[Reduced, Sequence[Row], Any], list[Prediction]]
    """(compact reduced, rows, state) -> one prediction for each row. {} stands for no window at all."""

    gold: str
    """What annotators give to a row, in the plural."""

    has_gold: Callable[[Row], bool]

    refuse: Callable[[Sequence[Row], Any], None]
    """(rows to score, state) -> nothing. Raises DataError for gold that can't be compared with what is predicted."""

    metrics: Callable[[Sequence[Prediction], Sequence[Row], Any], dict[str, float]]

    breakdown: Callable[[Sequence[Prediction], Sequence[Row], Any], Breakdown]
    """(predictions, rows, state) -> the metrics of each class."""

    for_metrics: Callable[[Prediction], Prediction]
    """What `metrics` and `breakdown` read of a prediction: all that evaluation keeps of it."""

    calibrate: Callable[[dict[str, float], Any], Any]
    """(metrics of the best model on validation, state) -> the state to decode with from then on."""

    head_metric: Callable[[Any], str]
    """(state) -> the metric to show first."""

    hub_metrics: dict[str, str]
    """The metrics that describe a model -> what the Hugging Face hub calls them."""

    full_score: float
    """The highest value of these metrics."""

    examine: Callable[[Prediction, Row, Any], Examined]
    """(prediction, row, state) -> what the report shows of a prediction."""

    show: Callable[[Prediction, Row], str]
    """One prediction, marked in its text, for a terminal."""

    served: Served
    card: Card
