"""The MLflow model: `finetune` itself travels inside, so that what is served is decoded as it was evaluated.

MLflow runs this file when it loads the model (models from code).
"""

import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mlflow
import pandas as pd
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from finetune.core.types import Json
from finetune.data.table import Row
from finetune.data.values import Unusable
from finetune.results import limits

if TYPE_CHECKING:
    from mlflow.pyfunc import PythonModelContext
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

    from finetune.tasks.task import Prediction, Serving, State, Task

BATCH_SIZE = 8
TOGETHER = 32_000  # characters of requests that are computed together: some batches of windows
SHOWN = 5  # faulty values in an error


class Loaded(NamedTuple):
    """A model that is in memory: what it was configured by, and how it answers rows by a state."""

    config: "PreTrainedConfig"
    tokenizer: "PreTrainedTokenizerFast"
    predict: Callable[[Sequence[Row], "State"], list["Prediction"]]
    lanes: int = 1  # calls of `predict` that may run at the same time


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The served model: from a DataFrame of the task's input columns to one of predictions, in the same order.

    MLflow makes the DataFrame of whatever it is given, and by the signature refuses missing columns and parameters of
    another type, fills in the defaults, and leaves out, with a warning, parameters that it doesn't know.
    """

    def load_context(self, context: "PythonModelContext") -> None:
        """Load the model, once; `context.artifacts["model"]` is the folder of weights, config and tokenizer."""
        from finetune.models.micro_batches import MicroBatches
        from finetune.models.openvino import is_ir
        from finetune.models.stored.configs import STATE_KEY
        from finetune.models.stored.sums import refuse_damaged
        from finetune.tasks import load_task

        folder = Path(context.artifacts["model"])
        refuse_damaged(folder)
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))[STATE_KEY]
        self.task = load_task(stored["task"])
        self.state = self.task.state(**stored["state"])
        self.limits = {**limits.LIMITS, **(context.model_config or {}), **limits.of_environment()}
        load = in_openvino if is_ir(folder) else in_pytorch
        self.loaded = load(folder, self.task, self.state)
        self.predictions: MicroBatches[State, Prediction] = MicroBatches(
            lambda records, state: self.loaded.predict(self.task.serving.rows(records), state),
            self.loaded.lanes,
            TOGETHER,
        )

    def asked(self, given: Json) -> "State":
        """Return the state that a request asks for. Raises: MlflowException if the model has no use for a value."""
        from finetune.core.errors import ParameterError
        from finetune.tasks.task import Imported

        try:
            model = Imported(self.loaded.config, self.loaded.tokenizer, self.state.max_seq_length)
            return self.task.decoding.asked(self.state, given, model)
        except ParameterError as error:
            what = "; ".join(fault.what.removeprefix("--") for fault in error.faults)
            raise mlflow.MlflowException.invalid_parameter_value(what) from None

    def predict(self, context: object, model_input: pd.DataFrame, params: Json | None = None) -> pd.DataFrame:
        """Return the predictions. `params` override fields of the stored state; None leaves a field as it is.

        A server calls it from several threads; what is asked at once is computed in micro-batches.
        Raises: MlflowException if there is a value that the task doesn't accept, TooLarge if there is too much.
        """
        others = self.task.serving.others(self.state)
        given = records_of(model_input, as_given(), self.task.serving, others)
        if what := limits.too_much(given, self.limits):
            raise TooLarge(what, error_code=BAD_REQUEST)
        records = values_of(given, self.task.serving, others)
        state = self.asked({name: value for name, value in (params or {}).items() if value is not None})
        predictions = self.predictions(records, state, limits.characters(records))
        return pd.DataFrame(
            [self.task.serving.present(p) for p in predictions], columns=list(self.task.serving.outputs)
        )


def in_pytorch(folder: Path, task: "Task[State]", state: "State") -> Loaded:
    """Return the model of a PyTorch folder, on the device that it is served on."""
    import torch

    from finetune.models.loading import load_model
    from finetune.models.prediction import predict_rows
    from finetune.models.stored.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(folder, task)
    model, _ = load_model(folder, task, state)
    model.to(device(torch.cuda.is_available()))
    lanes = 1 if model.device.type == "cuda" else max(1, len(os.sched_getaffinity(0)) // torch.get_num_threads())
    return Loaded(
        model.config,
        tokenizer,
        lambda rows, asked: predict_rows(model, tokenizer, rows, task, asked, BATCH_SIZE),
        lanes,
    )


def in_openvino(folder: Path, task: "Task[State]", state: "State") -> Loaded:
    """Return the model of a folder that `finetune export` wrote, on the CPU. A model that reads needs no torch.

    It has as many threads as OMP_NUM_THREADS says, as PyTorch's would, or one for each core.
    """
    from finetune.models import openvino
    from finetune.models.stored.configs import load_config
    from finetune.models.stored.tokenizers import saved_tokenizer

    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() else openvino.ALL_CORES
    tokenizer = saved_tokenizer(folder, task)
    if task.writes:
        from finetune.models import prediction
        from finetune.models.writer import open_writer

        predict = partial(prediction.predict_rows, open_writer(folder, threads))
    else:
        predict = partial(openvino.predict_rows, openvino.open_openvino(folder / openvino.IR, threads))
    return Loaded(load_config(folder), tokenizer, lambda rows, asked: predict(tokenizer, rows, task, asked, BATCH_SIZE))


def device(has_gpu: bool) -> str:
    """Return where to compute: MLFLOW_DEFAULT_PREDICTION_DEVICE, the number of a GPU or a negative one for the CPU, as
    MLflow has it for its own models; else a GPU if there is one. Raises: MlflowException if it says something else."""
    asked = os.environ.get(limits.SERVED_ON, "")
    if not asked:
        return "cuda" if has_gpu else "cpu"
    if asked == "cpu" or re.fullmatch("-[0-9]+", asked):
        return "cpu"
    if not asked.isdecimal():
        what = f"{limits.SERVED_ON} is {asked!r}, not the number of a GPU, or -1 for the CPU"
        raise mlflow.MlflowException.invalid_parameter_value(what)
    return f"cuda:{asked}"


def as_given() -> object:
    """Return what `PyFuncModel.predict` was called with, from its frame on the stack; None where it isn't there.

    MLflow makes one and the same DataFrame of two texts, {"inputs": ["Ada", "Bob"]}, and of a record with two words,
    {"dataframe_records": [{"input_string": ["Ada", "Bob"]}]}, and hands over nothing else.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not mlflow.pyfunc.PyFuncModel.predict.__code__:
        frame = frame.f_back
    return frame and frame.f_locals.get("data")


def records_of(
    model_input: pd.DataFrame, given: object, served: "Serving[State]", others: Mapping[str, str]
) -> list[Json]:
    """Return a record for each row, with one of the names of each input column.

    Raises: MlflowException if a row has two of them.
    """
    records: list[Json] = in_rows(model_input, given, served, others).to_dict("records")
    for name in dict.fromkeys(others.values()):
        names = (name, *(other for other, meant in others.items() if meant == name))
        for i, record in enumerate(records):
            found = [one for one in names if not _is_absent(record.get(one))]
            found = [one for one in found if one not in served.spare] or found
            if len(found) > 1:
                what = f"row {i} has {' and '.join(found)}, which mean the same; {served.forms}"
                raise mlflow.MlflowException.invalid_parameter_value(what)
            kept = next(iter(found or [one for one in names if one in record]))
            for other in set(names) - {kept}:
                record.pop(other, None)
    return records


def _is_absent(value: object) -> bool:
    """Return whether this stands where a record of a DataFrame has no value; an empty text is one."""
    return value is None or (isinstance(value, float) and isnan(value))


def in_rows(
    model_input: pd.DataFrame, given: object, served: "Serving[State]", others: Mapping[str, str]
) -> pd.DataFrame:
    """Return a row for each element where lists were given, by column or alone: MLflow puts texts into one row, or
    where a column may have two names, into none.

    Lists of different lengths stay in that row, as no task accepts them. Raises: MlflowException if there is no column.
    """
    if isinstance(given, list) and not model_input.columns.size and not any(isinstance(one, dict) for one in given):
        return pd.DataFrame({next(iter(served.inputs)): given})
    columns = {name: given[name] for name in model_input.columns} if isinstance(given, dict) else {}
    if not model_input.columns.size:
        named = " or ".join((*served.inputs, *others))
        raise mlflow.MlflowException.invalid_parameter_value(f"missing inputs: no column {named}; {served.forms}")
    lengths = {len(values) for values in columns.values() if isinstance(values, list)}
    return pd.DataFrame(columns) if len(lengths) == 1 else model_input


class TooLarge(mlflow.MlflowException):  # type: ignore[misc]
    """A request that is larger than the model takes."""

    def get_http_status_code(self) -> int:
        """Return the status that a server answers with: MLflow has no error code for it, and 429 asks to try again."""
        return 413


def values_of(given: Sequence[Json], served: "Serving[State]", others: Mapping[str, str]) -> list[Json]:
    """Return the records with the values of the task's input columns, by the names of these.

    Raises: MlflowException, which a server answers with status 400, if the task doesn't accept a value.
    """
    records: list[Json] = [{} for _ in given]
    wrong = []
    for i, (record, values) in enumerate(zip(given, records, strict=True)):
        for name, value in record.items():
            try:
                values[others.get(name, name)] = _value(name, value, served)
            except Unusable as reason:
                wrong.append(f"{name} of row {i} is {value!r:.40}" + (f" ({reason})" if str(reason) else ""))
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        what = f"not {served.accepted}: {', '.join(wrong[:SHOWN])}{more}; {served.forms}"
        raise mlflow.MlflowException.invalid_parameter_value(what)
    return records


def _value(name: str, given: object, served: "Serving[State]") -> object:
    value = served.cell(name, given) if isinstance(given, str) else given
    if not served.accepts(value):
        raise Unusable("an empty cell" if isinstance(given, float) and isnan(given) else "")
    return value


mlflow.models.set_model(ServedModel())
