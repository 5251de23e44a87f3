"""The backends that are compared, each a model that is called as PyTorch's is, and what they are tried on."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.backends import conversion, memory, quantise, runtimes
from finetune.backends.called import as_model
from finetune.backends.chosen import Measured
from finetune.backends.measured import Speed
from finetune.backends.runtimes import ONNX, ONNX_INT8
from finetune.core.types import Json
from finetune.core.world import World
from finetune.data.batches import Arrays, Batch, as_windows, collate, spread
from finetune.data.table import Row
from finetune.models.openvino import IR, IR_WEIGHTS, open_openvino
from finetune.models.prediction import compute_in, predict_rows
from finetune.models.stored import intact
from finetune.tasks.encoding import encoded
from finetune.tasks.task import State, Task

ALONE = 16  # windows that are timed one at a time, of all lengths
COMPARED = 32  # windows whose logits are compared


@dataclass(frozen=True)
class Trial:
    """A finished model and the windows that its backends are tried on: batches of the inputs alone."""

    folder: Path  # of the PyTorch model
    model: PreTrainedModel
    rounded: PreTrainedModel | None  # as it was trained, if that was with rounding
    tokenizer: PreTrainedTokenizerFast
    task: Task[State]
    state: State
    rows: Sequence[Row]  # of validation, with gold
    alone: Sequence[Batch]  # of one window each
    together: Batch
    compared: Sequence[Batch]  # of two windows, the shorter one padded
    calibration: Sequence[Arrays]  # of one window of train each
    threads: int
    batch_size: int

    @property
    def inputs(self) -> list[str]:
        return list(self.together)

    @property
    def metric(self) -> str:
        """The main metric of the task."""
        return self.task.scoring.main_metric(self.state)


@dataclass(frozen=True)
class Candidate:
    """One backend: how it is called, and what of it lies on the disk."""

    name: str
    model: PreTrainedModel
    files: Sequence[Path]
    kind: str  # as memory.KINDS has it
    path: Path  # the folder of a PyTorch model, or the file of another one


def windows_of(
    rows: Sequence[Row], task: Task[State], tokenizer: PreTrainedTokenizerFast, state: State, most: int
) -> list[Json]:
    """Return at most so many windows of the rows, of what goes into the model's forward alone."""
    found: list[Json] = []
    for _, columns in encoded(spread(rows, most), task, tokenizer, state, most):
        found += as_windows({name: values for name, values in columns.items() if name in task.model.inputs})
    return spread(found, most)


def batches_for(
    windows: Sequence[Json], padding: dict[str, int], batch_size: int
) -> tuple[list[Batch], Batch, list[Batch]]:
    """Return the batches of one window, the batch of many around the median length, and the batches to compare."""
    ordered = sorted(windows, key=lambda window: len(window["input_ids"]))
    alone = [collate([window], padding) for window in spread(ordered, ALONE)]
    middle = max(0, (len(ordered) - batch_size) // 2)
    together = (ordered[middle : middle + batch_size] * batch_size)[:batch_size]
    some = spread(ordered, COMPARED)
    pairs = zip(some, reversed(some), strict=True)
    return alone, collate(together, padding), [collate(pair, padding) for pair in pairs]


def in_pytorch(trial: Trial) -> list[Candidate]:
    """Return PyTorch in 32 bits, which all are compared with, and in bf16 where the processor multiplies in that.

    Without such instructions PyTorch has plain loops: minutes for a score that nobody deploys.
    """
    base = trial.folder / intact.BASE_MODEL
    files = intact.weight_files(base if base.is_dir() else trial.folder)
    kinds = {"32": "PyTorch FP32"} | ({"bf16": "PyTorch bf16"} if World.here().cpu_has_bf16() else {})
    return [
        Candidate(name, compute_in(copy(trial.model), precision), files, name, trial.folder)
        for precision, name in kinds.items()
    ]


def in_openvino(trial: Trial, quantization: str, folder: Path) -> list[Candidate]:
    """Return OpenVINO in 32 bits, and in INT8 as asked for, each in a folder of its own in that folder.

    Raises: ModelError if one isn't the same model: in 32 bits as PyTorch's, with ranges of training as it was trained.
    """
    import openvino

    def saved(name: str, model: openvino.Model, place: Path) -> Candidate:
        place.mkdir(parents=True)
        openvino.save_model(model, place / IR, compress_to_fp16=False)
        opened = as_model(open_openvino(place / IR, trial.threads))
        return Candidate(name, opened, [place / IR, place / IR_WEIGHTS], "OpenVINO", place / IR)

    graph = conversion.graph_of(trial.model, trial.compared[0])
    converted = conversion.to_openvino(graph, trial.compared[0])
    full = saved("OpenVINO FP32", converted, folder / "fp32")
    refuse_other_model(trial, full)
    found = [full]
    if quantization == "ptq":
        found.append(saved("OpenVINO INT8", quantise.by_nncf(converted, trial.calibration), folder / "int8"))
    if trial.rounded is not None and quantization != "none":
        graph = conversion.graph_of(trial.rounded, trial.compared[0])
        found.append(saved("OpenVINO INT8 QAT", conversion.to_openvino(graph, trial.compared[0]), folder / "qat"))
        apart = conversion.relative_distance(found[-1].model, trial.rounded, trial.compared)
        conversion.refuse_other_rounding(found[-1].name, apart)
    return found


def in_onnx(trial: Trial, ptq: bool, folder: Path) -> list[Candidate]:
    """Return ONNX Runtime in 32 bits, and in INT8 if asked for. Raises: ModelError as `in_openvino`."""
    folder.mkdir(parents=True)
    graph = conversion.graph_of(trial.model, trial.compared[0])
    conversion.to_onnx(graph, trial.compared[0], folder / ONNX)
    files = {"ONNX Runtime FP32": folder / ONNX}
    if ptq:
        files["ONNX Runtime INT8"] = folder / ONNX_INT8
        quantise.by_onnxruntime(folder / ONNX, trial.calibration, folder, folder / ONNX_INT8)
    found = [
        Candidate(name, as_model(runtimes.open_onnx(path, trial.threads)), [path], "ONNX Runtime", path)
        for name, path in files.items()
    ]
    refuse_other_model(trial, found[0])
    return found


def refuse_other_model(trial: Trial, candidate: Candidate) -> None:
    """Raise ModelError if a candidate in 32 bits computes other logits than PyTorch."""
    found = conversion.distance(candidate.model, trial.model.eval(), trial.compared)
    conversion.refuse_other_logits(candidate.name, found)


def score_of(trial: Trial, candidate: Candidate) -> float:
    """Return the main metric on the rows, 0 to 100: by the decoder and the metrics of the evaluation component."""
    predictions = predict_rows(candidate.model, trial.tokenizer, trial.rows, trial.task, trial.state, trial.batch_size)
    scores = trial.task.scoring.metrics(predictions, trial.rows, trial.state)
    return 100 * scores[trial.metric] / trial.task.scoring.full_score


def account(trial: Trial, candidate: Candidate, score: float, speed: Speed) -> Measured:
    """Return what the candidate costs; its memory is that of a process which is started here."""
    tokens = max(batch["input_ids"].shape[1] for batch in trial.alone)
    return Measured(
        name=candidate.name,
        score=score,
        p50_ms=speed.p50_ms,
        windows_per_second=speed.windows_per_second,
        disk_mb=sum(path.stat().st_size for path in candidate.files) / 1e6,
        memory_mb=memory.peak_mb(candidate.kind, candidate.path, trial.task.name, trial.threads, tokens, trial.inputs),
        distance=conversion.distance(candidate.model, trial.model.eval(), trial.compared),
    )
