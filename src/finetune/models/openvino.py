"""A model in OpenVINO: opened as a function from arrays to arrays, and the path from rows to predictions without torch.

An IR is a graph in an .xml file and its weights in the .bin beside it, on the CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune.core.errors import Fault, ModelError, first_line
from finetune.data.batches import Arrays, as_windows, by_length, concatenated, stack
from finetune.data.table import Row
from finetune.tasks.encoding import ROWS_AT_A_TIME, encoded
from finetune.tasks.task import Prediction, S, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IR = "openvino_model.xml"
# Of an encoder-decoder.
ENCODER, DECODER = "openvino_encoder_model.xml", "openvino_decoder_model.xml"
PRECISIONS = {"32": "f32", "bf16": "bf16"}  # left to itself, OpenVINO computes in bf16 where the processor has it
ALL_CORES = 0


@dataclass(frozen=True)
class Opened:
    """A graph that is computed: arrays by name of the input -> arrays by name of the output, B first.

    It is one thread's at a time.
    """

    inputs: tuple[str, ...]
    compute: Callable[[Arrays], Arrays]
    empty: dict[str, tuple[int, ...]] = field(default_factory=dict)  # input -> its sizes behind B, 0 where any will do


def open_openvino(model: Path, threads: int, precision: str = "32") -> Opened:
    """Return the OpenVINO model of an .xml file and the .bin beside it. Raises: ModelError if it can't be read."""
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else what meets weights in INT8 is rounded too, on some processors
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    try:
        compiled = openvino.Core().compile_model(model, "CPU", hints)
        names = [port.any_name for port in compiled.inputs], [port.any_name for port in compiled.outputs]
    except RuntimeError as error:
        fix = "run finetune export again"
        raise ModelError(Fault(f"{model} can't be loaded", why=first_line(error), fix=fix)) from None
    request = compiled.create_infer_request()

    def compute(given: Arrays) -> Arrays:
        found = request.infer(given, share_inputs=True)
        return {name: np.array(found[name]) for name in names[1]}  # a copy: the next computation writes there

    empty = {
        port.any_name: tuple(0 if size.is_dynamic else size.get_length() for size in list(port.partial_shape)[1:])
        for port in compiled.inputs
    }
    return Opened(tuple(names[0]), compute, empty)


def is_ir(folder: Path) -> bool:
    """Return whether a folder holds graphs of OpenVINO."""
    return any((folder / name).is_file() for name in (IR, ENCODER, DECODER))


def graph_files(folder: Path) -> list[Path]:
    """Return the files of the graphs that a folder holds, or lacks: each has its weights beside it."""
    two = any((folder / name).is_file() for name in (ENCODER, DECODER))
    graphs = [folder / name for name in ((ENCODER, DECODER) if two else (IR,))]
    return [file for graph in graphs for file in (graph, graph.with_suffix(".bin"))]


def refuse_no_ir(folder: Path) -> None:
    """Raise ModelError unless all files of an OpenVINO model are in the folder."""
    missing = [file.name for file in graph_files(folder) if not file.is_file()]
    if missing:
        fix = "give the openvino_model_folder that finetune export wrote"
        raise ModelError(Fault(f"{folder} has no {' and no '.join(missing)}", why="it is no OpenVINO model", fix=fix))


def predict_rows(
    opened: Opened,
    tokenizer: "PreTrainedTokenizerFast",
    rows: Sequence[Row],
    task: Task[S],
    state: S,
    batch_size: int,
) -> list[Prediction]:
    """Return one prediction for each row, in order: the windows, the reduced results and the decoder are those of
    `prediction.predict_rows`, which has tensors where arrays are here."""
    assert task.reduce is not None  # it is a model that reads
    padding = task.data.padding(tokenizer)
    predictions: list[Prediction] = []
    for part, columns in encoded(rows, task, tokenizer, state, ROWS_AT_A_TIME):
        reduced = []
        for windows in by_length(as_windows(columns), batch_size):
            batch = stack(windows, padding)
            outputs = opened.compute({name: batch[name] for name in opened.inputs})
            reduced.append(task.reduce(outputs, batch, state))
        together = task.decoding.compact(concatenated(reduced)) if reduced else {}
        predictions += task.decoding.decode(together, part, state, tokenizer)
    return predictions
