"""The backends that are compared, each a model that is called as PyTorch's is."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from finetune.backends import memory, runtimes
from finetune.backends.chosen import Measured
from finetune.backends.graphs import conversion
from finetune.backends.graphs.conversion import Forward
from finetune.backends.kinds import kind_of
from finetune.backends.measured import Speed
from finetune.backends.trial import Trial
from finetune.core.world import World
from finetune.models.openvino import graph_files
from finetune.models.prediction import compute_in, predict_rows
from finetune.models.stored import intact

if TYPE_CHECKING:
    import openvino


@dataclass(frozen=True)
class Candidate:
    """One backend: how it is called, and what of it lies on the disk."""

    name: str
    model: PreTrainedModel
    files: Sequence[Path]
    kind: str  # as memory.KINDS has it
    path: Path  # the folder of a PyTorch model, or the file of another one


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
    graphs = graphs_of(trial, trial.model)
    full = saved(trial, "OpenVINO FP32", graphs, folder / "fp32")
    refuse_other_model(trial, full)
    found = [full]
    if quantization == "ptq":
        by_nncf = kind_of(trial.task).by_nncf
        quantised = {name: by_nncf(graph, trial.calibration) for name, graph in graphs.items()}
        found.append(saved(trial, "OpenVINO INT8", quantised, folder / "int8"))
    if trial.rounded is not None and quantization != "none":
        found.append(saved(trial, "OpenVINO INT8 QAT", graphs_of(trial, trial.rounded), folder / "qat"))
        apart = conversion.relative_distance(found[-1].model, trial.rounded, trial.compared)
        conversion.refuse_other_rounding(found[-1].name, apart)
    return found


def graphs_of(trial: Trial, model: PreTrainedModel) -> dict[str, "openvino.Model"]:
    """Return the graphs of a model by the names of their files."""
    parts = kind_of(trial.task).parts_of(model, trial.compared[0])
    return {f"openvino_{name}.xml": conversion.to_openvino(part) for name, part in parts.items()}


def saved(trial: Trial, name: str, graphs: Mapping[str, "openvino.Model"], place: Path) -> Candidate:
    """Write graphs into a folder of their own, with the config that they are opened by, and open them."""
    import openvino

    place.mkdir(parents=True)
    trial.model.config.save_pretrained(place)
    for file, graph in graphs.items():
        openvino.save_model(graph, place / file, compress_to_fp16=False)
    files = graph_files(place)
    return Candidate(name, kind_of(trial.task).in_openvino(place, trial.threads), files, "OpenVINO", files[0])


def in_onnx(trial: Trial, ptq: bool, folder: Path) -> list[Candidate]:
    """Return ONNX Runtime in 32 bits, and in INT8 if asked for. Raises: ModelError as `in_openvino`."""
    folder.mkdir(parents=True)
    trial.model.config.save_pretrained(folder)
    kind = kind_of(trial.task)
    parts = kind.parts_of(trial.model, trial.compared[0])
    files = {"ONNX Runtime FP32": [folder / f"{name}.onnx" for name in parts]}
    for part, file in zip(parts.values(), files["ONNX Runtime FP32"], strict=True):
        conversion.to_onnx(part, file)
    if ptq:
        files["ONNX Runtime INT8"] = [folder / f"{name}_int8.onnx" for name in parts]
        for file, target in zip(*files.values(), strict=True):
            kind.by_onnxruntime(file, trial.calibration, target)
    found = []
    for name, of_name in files.items():
        opened = [runtimes.open_onnx(file, trial.threads) for file in of_name]
        found.append(Candidate(name, kind.in_onnx(trial.model.config, opened), of_name, "ONNX Runtime", of_name[0]))
    refuse_other_model(trial, found[0])
    return found


def refuse_other_model(trial: Trial, candidate: Candidate) -> None:
    """Raise ModelError if a candidate in 32 bits computes other logits than PyTorch."""
    computed = as_compared(trial, candidate)
    kind_of(trial.task).refuse_other(candidate.name, computed, trial.model.eval(), trial.compared)


def as_compared(trial: Trial, candidate: Candidate) -> Forward:
    """Return what gives the logits of a batch that are compared."""
    by_graphs = candidate.kind in ("OpenVINO", "ONNX Runtime")
    return kind_of(trial.task).compared(candidate.model) if by_graphs else candidate.model


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
        memory_mb=memory.peak_mb(candidate.kind, candidate.path, trial.task.name, trial.threads, tokens, trial.columns),
        distance=conversion.distance(as_compared(trial, candidate), trial.model.eval(), trial.compared),
    )
