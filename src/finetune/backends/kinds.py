"""How the two kinds of models, those that read and those that write, are converted, opened and compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig, PreTrainedModel

from finetune.backends.called import as_model
from finetune.backends.graphs import conversion, generation, quantise
from finetune.backends.graphs.conversion import Forward, Part
from finetune.data.batches import Arrays, Batch
from finetune.models.openvino import IR, Opened, open_openvino
from finetune.models.writer import open_writer, writer_of
from finetune.tasks.task import State, Task

if TYPE_CHECKING:
    import openvino


@dataclass(frozen=True)
class Kind:
    """How models of a kind become graphs, are opened again, and are compared with PyTorch's."""

    parts_of: Callable[[PreTrainedModel, Batch], dict[str, Part]]  # by the names of their graphs
    by_nncf: Callable[["openvino.Model", Sequence[Arrays]], "openvino.Model"]  # in INT8; windows of train
    by_onnxruntime: Callable[[Path, Sequence[Arrays], Path], None]  # from one file to another, in INT8
    in_openvino: Callable[[Path, int], PreTrainedModel]  # from a folder of graphs, with so many threads
    in_onnx: Callable[[PreTrainedConfig, Sequence[Opened]], PreTrainedModel]
    compared: Callable[[PreTrainedModel], Forward]  # what computes the logits of a batch
    refuse_other: Callable[[str, Forward, Forward, Sequence[Batch]], None]  # in 32 bits; raises ModelError


def kind_of(task: Task[State]) -> Kind:
    """Return the kind of the models of a task."""
    return WRITES if task.writes else READS


def _refuse_other_logits(name: str, one: Forward, other: Forward, batches: Sequence[Batch]) -> None:
    conversion.refuse_other_logits(name, conversion.distance(one, other, batches))


def _refuse_other_writing(name: str, one: Forward, other: Forward, batches: Sequence[Batch]) -> None:
    conversion.refuse_other_writing(name, conversion.relative_distance(one, other, batches))


READS = Kind(
    parts_of=conversion.parts_of,
    by_nncf=quantise.by_nncf,
    by_onnxruntime=quantise.by_onnxruntime,
    in_openvino=lambda folder, threads: as_model(open_openvino(folder / IR, threads)),
    in_onnx=lambda _, opened: as_model(opened[0]),
    compared=lambda model: model,
    refuse_other=_refuse_other_logits,
)
WRITES = Kind(
    parts_of=lambda model, _: generation.parts_of(model),
    by_nncf=lambda graph, _: quantise.weights_by_nncf(graph),
    by_onnxruntime=lambda file, _, target: quantise.weights_by_onnxruntime(file, target),
    in_openvino=open_writer,
    in_onnx=writer_of,
    compared=lambda model: partial(generation.in_steps, model),
    refuse_other=_refuse_other_writing,
)
