"""The record that a task is: records of functions over rows, windows and predictions.

    file --read_table--> table --data.validate--> rows --data.encode--> windows --collate--> batch
    batch --objective.loss--> training        batch --answer--> reduced --decoding.decode--> predictions
    predictions --scoring.metrics--> numbers  --report.examine--> report.html  --serving.present--> what is served

A row is a dict as `data.validate` makes it; a window is one model input, several of which may come from one row.
Shapes: B windows in a batch, L tokens in a window.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from finetune.core.types import Json
from finetune.data.batches import Batch, Columns
from finetune.data.table import Audit, Row, StoredRows, Table
from finetune.params.provenance import Derived

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
    from transformers.models.auto.auto_factory import _BaseAutoModelClass
    from transformers.utils.generic import ModelOutput

    Array = np.ndarray | torch.Tensor

Rows = Sequence[Row]
Prediction = Json
Reduced = Json  # name -> tensor, then array, first dimension B
Confusion = dict[str, dict[str, int]]  # gold class -> predicted class -> how many
Item = tuple[str, *tuple[int, ...]]  # what is scored: its class, and where it stands
Params = Any  # parameters of a component of this task


@dataclass(frozen=True, kw_only=True)
class State:
    """The state that encoding and decoding need; it travels in preprocess.json and in the config.json of the model.

    A task adds fields of its own.
    """

    max_seq_length: int
    pad_to_max_length: bool

    def __post_init__(self) -> None:
        """Raises: ValueError if a count is negative."""
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{name} is {value}")


S = TypeVar("S", bound=State)
Answer = Callable[["PreTrainedModel", Batch, S], Reduced]
Reduce = Callable[[Mapping[str, "Array"], Mapping[str, "Array"], S], Reduced]


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
    """The metrics by class, and what was taken for what; empty for tasks without classes."""

    classes: dict[str, dict[str, float]] = field(default_factory=dict)  # class -> metric -> value, support among them
    confusion: Confusion = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """The reason why training can't learn from a row, and what to type against it, "" where no parameter mends it."""

    reason: str
    fix: str = ""


class Imported(NamedTuple):
    """What encoding needs of the imported model."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    longest_window: int  # tokens


@dataclass(frozen=True, kw_only=True)
class Data(Generic[S]):
    """The functions from files to rows and windows."""

    validate: Callable[[Table, Params, Audit], StoredRows]
    """Given (table, parameters with the column names, audit), return rows. Raises: DataError if a column is missing."""

    group: Callable[[Row], str]
    """Rows of one group never stand on two sides of a split."""

    grouped_by: str
    """The name of what the rows of a group share."""

    gold: str
    """The name of what annotators give to a row, in the plural."""

    has_gold: Callable[[Row], bool]

    pretokenized: bool
    """True where the tokenizer is given words instead of text."""

    aligned: bool
    """True where the task has to know which word and which characters a token stands for: by a fast tokenizer."""

    fit: Callable[[Params, Mapping[str, Rows], Imported], S]
    """Given (preprocess parameters, rows by split, imported model), return a state."""

    derived: Callable[[Params, S, Mapping[str, Rows]], list[str]]
    """Given (preprocess parameters, state, rows by split), return a line for what `fit` found or changed."""

    encode: Callable[[Rows, PreTrainedTokenizerFast, S], Columns]
    """Given (rows, tokenizer, state), return columns: the model inputs, what decoding needs, and "row", whose it is."""

    label: Callable[[Rows, Columns, S], tuple[Columns, dict[int, Lost]]]
    """Given (rows with gold, encoded, state), return columns of labels, and the rows that training can't learn from."""

    unanswerable: Callable[[Rows, Columns, S], dict[int, str]]
    """Given (rows, encoded, state), return the rows that the model can't answer, or not as their gold is, and why."""

    gold_lengths: Callable[[Columns], list[int]]
    """Given labelled windows, return the tokens of each row's gold, where decoding is bound to a length; else none."""

    beyond: Callable[[Sequence[int], S], list[str]]
    """Given (these lengths of all rows, state), return lines on how many are too long to be predicted."""

    damage: Callable[[Row], str]
    """Return what keeps a row of another process from being one that `validate` made; "" where nothing does."""

    characters: Callable[[Row], int]
    """Return the characters that the tokenizer is given of a row."""

    decode_columns: frozenset[str]
    """The columns that only decoding reads; training windows go without."""

    padding: Callable[[PreTrainedTokenizerFast], dict[str, int]]
    """Given the tokenizer, return the value that fills up each column of lists."""

    kinds: Callable[[Row], Collection[str]]
    """Given a row, return the kinds of rows that it is one of: the proof of a saved model covers each."""


@dataclass(frozen=True, kw_only=True)
class Model(Generic[S]):
    """The class that is finetuned, and the task's head."""

    auto_model: Callable[[PreTrainedConfig], type[_BaseAutoModelClass]]
    """Given the config, return the transformers auto class that finetuning loads."""

    families: Mapping[Any, Any]
    """The model classes that have the head, by config class."""

    inputs: frozenset[str]
    """The columns that may go into the model's forward."""

    head_config: Callable[[S | None], Json]
    """Given a state or None, return the values of config.json that shape the head; none where only data can tell."""

    adopt: Callable[[S, PreTrainedConfig], S]
    """Given (state, config of a model from elsewhere), return the state with what that config knows better."""

    configure: Callable[[PreTrainedModel, S], None] = lambda _model, _state: None
    """Given (model, state), set in the model what it decodes by, and is saved with."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss that training minimises: the sum of the losses of all items of a step, divided by their number.

    Where items have weights, a loss counts with its item's, and so does the item.
    """

    labels: frozenset[str]
    """The columns of labels; a batch without them has no loss."""

    loss: Callable[[ModelOutput, Batch], torch.Tensor]
    """Given (outputs, batch), return (B,) fp32: the loss of each window, summed over its items."""

    items: Callable[[Batch], torch.Tensor]
    """Given a batch, return (B,): how many items each window's loss is the sum of."""

    distance: Callable[[ModelOutput, ModelOutput, Batch, float], torch.Tensor]
    """Given (outputs, those of a teacher, batch, temperature), return (B,) fp32: how far the probabilities of each
    window are from the teacher's, summed over its items."""


@dataclass(frozen=True, kw_only=True)
class Decoding(Generic[S]):
    """The one decoder of training, evaluation and serving: from reduced results to predictions."""

    compact: Callable[[Reduced], Reduced]
    """Given reduced results as NumPy arrays, return the same without padding."""

    decode: Callable[[Reduced, Rows, S, PreTrainedTokenizerFast], list[Prediction]]
    """Given (compact reduced, rows, state, tokenizer), return one prediction for each row, an empty one if it has no
    window."""

    calibrate: Callable[[dict[str, float], S], S]
    """Given (metrics of the best model on validation, state), return the state to decode with from then on."""

    written: Callable[[Reduced], int] = lambda _reduced: 0
    """Given the reduced results of a batch, return the tokens that the model has written."""

    request_fields: tuple[str, ...]
    """The fields of the state that a request to the served model, or the evaluation component, may override."""

    asked: Callable[[S, Json, Imported], S] = lambda state, given, _model: replace(state, **given)
    """Given (state, values of some of these fields, the model), return the state with them, and with what follows from
    them. Raises: ParameterError for a value that the model has no use for."""


@dataclass(frozen=True, kw_only=True)
class Published(Generic[S]):
    """The metrics of Azure's published evaluation component, by whose names users find their runs."""

    metrics: Callable[[Sequence[Prediction], Rows, S, Json], dict[str, float]]
    """Given (predictions, rows, state, options), return all metrics by their published names."""

    names: tuple[str, ...]

    options: dict[str, type]
    """The keys of evaluation_config, besides metrics, and the types of their values: bool, or list[str] of patterns."""


@dataclass(frozen=True, kw_only=True)
class Scoring(Generic[S]):
    """The functions from predictions and gold to numbers."""

    refuse: Callable[[Rows, S], None]
    """Given (rows to score, state), raise DataError for gold that can't be compared with what is predicted."""

    lacking: Callable[[Rows, S], dict[str, int]]
    """Given (rows to score, state), return the gold classes that the model lacks, and how often each is gold."""

    metrics: Callable[[Sequence[Prediction], Rows, S], dict[str, float]]

    costly: Callable[[Sequence[Prediction], Rows, S], dict[str, float]] = lambda _predictions, _rows, _state: {}
    """Return the metrics that the evaluation component has besides: training would wait for them at each evaluation."""

    breakdown: Callable[[Sequence[Prediction], Rows, S], Breakdown]
    """Given (predictions, rows, state), return the metrics of each class."""

    published: Published[S]

    needed: Callable[[Prediction], Prediction]
    """Return what `metrics`, `published` and `breakdown` read of a prediction: all that evaluation keeps of it."""

    described: Callable[[S], Json] = lambda _state: {}
    """Given the state, return what metrics.json says of how the metrics were computed."""

    main_metric: Callable[[S], str]
    """Given the state, return the metric to show first."""

    hub_metrics: dict[str, str]
    """The metrics that describe a model, and what the Hugging Face hub calls each."""

    full_score: float
    """The highest value of these metrics."""


@dataclass(frozen=True, kw_only=True)
class Serving(Generic[S]):
    """The inputs and outputs of the MLflow model."""

    inputs: dict[str, Json]
    """The types of the input columns, as in MLflow's JSON."""

    others: Callable[[S], dict[str, str]]
    """Given the state, return other names that an input column may have in a request, each with its own."""

    spare: frozenset[str]
    """Those of them that count only in a record without another: data sets have them beside it."""

    cell: Callable[[str, str], object]
    """Given (name in the request, text), return the value that the text is there: a cell of a CSV holds nothing else.
    Raises: Unusable if it is none."""

    outputs: dict[str, Json]
    """The types of the output columns, as in MLflow's JSON."""

    example: Row
    """An example: one record of the input columns."""

    accepts: Callable[[object], bool]
    """Return whether a value may stand in an input column."""

    accepted: str
    """The values that may, in words."""

    forms: str
    """How requests are written, for who has written another."""

    rows: Callable[[Sequence[Row]], list[Row]]
    """Given records of the input columns, return rows."""

    request: Callable[[Row], Json]
    """Return a row as a record of the input columns."""

    present: Callable[[Prediction], Json]
    """Return a prediction as a record of the output columns."""

    tied: Callable[[Prediction, Json, S, float], bool]
    """Given (prediction, what another computation of the same model presents, state, tolerance), return whether the
    predicted answer beats that one by no more than the tolerance, so that rounding decides between them."""


@dataclass(frozen=True, kw_only=True)
class Report(Generic[S]):
    """The functions that show a prediction."""

    examine: Callable[[Prediction, Row, S], Examined]
    """Given (prediction, row, state), return what the report shows of a prediction."""

    show: Callable[[Prediction, Row], str]
    """Return a prediction, marked in its text, for a terminal."""


@dataclass(frozen=True, kw_only=True)
class Card(Generic[S]):
    """The part of the model card that a task writes."""

    pipeline_tag: str
    """The hub's name of the task."""

    usage: Callable[[S], str]
    """Given the state, return the lines of Python that use `model` and `tokenizer`."""

    limits: Callable[[S], list[str]]
    """Given the state, return what the model can't do, a sentence each."""


@dataclass(frozen=True, kw_only=True)
class Task(Generic[S]):
    """One task, generic in its State."""

    name: str

    state: Callable[..., S]
    """The class of the state, made from what preprocess.json or config.json holds."""

    data: Data[S]
    model: Model[S]
    objective: Objective

    weigh: Callable[[Params, S, Dataset], tuple[Objective, list[Derived]]] | None = None
    """Given (finetune parameters, state, training windows), return the objective of training and what was derived for
    it. None where training has no other objective than evaluation."""

    answer: Answer[S]
    """Given (model, batch, state), return the reduced results: small tensors on the device, B first, negative where a
    second dimension is padded; with the loss and the items (B,) of each window where the batch has labels.

    Evaluation during training, the evaluation component and the served model all call it. A task whose model reads
    makes it by `answering.by_forward`; one whose model writes calls `model.generate` here, and nothing else differs."""

    reduce: Reduce[S] | None = None
    """Given (outputs of a forward pass, batch, state), return the reduced results, of arrays as of tensors: where the
    model is served by another runtime there is no torch. None for a task whose model writes."""

    decoding: Decoding[S]
    scoring: Scoring[S]
    serving: Serving[S]
    report: Report[S]
    card: Card[S]

    @property
    def writes(self) -> bool:
        """Whether the model writes its answer, token after token."""
        return self.reduce is None
