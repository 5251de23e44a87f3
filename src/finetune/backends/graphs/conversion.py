"""Turn a PyTorch model into a graph of OpenVINO or ONNX, for any number of windows B and tokens L, and compare."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from finetune.core.errors import Fault, ModelError, UnsupportedError
from finetune.data.batches import Batch

if TYPE_CHECKING:
    import onnx
    import openvino

MODEL = "model"  # the name of the graph of a model that has one
Forward = Callable[..., ModelOutput]  # a model, or what is called as one

# Two runtimes add up the same products in another order, which moves a logit by 1e-5; bf16 moves it by 1e-1.
PARITY = 1e-3
# The logits of a vocabulary are ten or a hundred times as large as those of a head.
WRITTEN_PARITY = 1e-4  # of the root mean square of a logit
# With rounding, what lies halfway between two numbers of a grid goes to either, and moves a logit by more.
ROUNDED_PARITY = 0.1  # of the root mean square of a logit
LARGEST_ONNX = 2**31 - 2**24  # bytes of weights in one file, whose format has 2 GiB


class Part(NamedTuple):
    """A module that becomes a graph of its own."""

    module: torch.nn.Module  # a function of its inputs, in order, to a tuple
    example: Batch  # of the inputs, each of two rows or more
    outputs: Sequence[str]
    free: Mapping[str, tuple[int, ...]]  # input -> which of its sizes are free


class Logits(torch.nn.Module):
    """The model as a function of its inputs, in an order, to its logits, in an order."""

    def __init__(self, model: PreTrainedModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(**dict(zip(self.inputs, given, strict=True)))
        return tuple(outputs[name] for name in self.outputs)


@torch.no_grad()
def parts_of(model: PreTrainedModel, batch: Batch) -> dict[str, Part]:
    """Return the one graph of a model that reads: from the inputs of the batch to everything that it calls logits."""
    outputs = logits_of(model.eval()(**batch))
    return {MODEL: Part(Logits(model, list(batch), outputs).eval(), batch, outputs, dict.fromkeys(batch, (0, 1)))}


def logits_of(outputs: ModelOutput) -> list[str]:
    """Return the names of what a model calls logits."""
    return [name for name in outputs if name.endswith("logits")]


def to_openvino(part: Part) -> "openvino.Model":
    """Return the graph as OpenVINO has it, in 32 bits."""
    import openvino

    with quiet(), torch.no_grad():
        converted = openvino.convert_model(part.module, example_input=tuple(part.example.values()))
    for names, ports in ((part.example, converted.inputs), (part.outputs, converted.outputs)):
        for name, port in zip(names, ports, strict=True):
            port.get_tensor().set_names({name})
    sizes = {
        name: [-1 if axis in part.free[name] else size for axis, size in enumerate(tensor.shape)]
        for name, tensor in part.example.items()
    }
    converted.reshape({name: openvino.PartialShape(size) for name, size in sizes.items()})
    return converted


def to_onnx(part: Part, path: Path) -> None:
    """Write the graph as ONNX. Raises: UnsupportedError if one file can't hold it."""
    import onnx

    size = sum(tensor.numel() * tensor.element_size() for tensor in part.module.state_dict().values())
    if size > LARGEST_ONNX:
        why = f"its weights take {size / 1e9:.1f} GB, and an ONNX file holds 2"
        raise UnsupportedError(Fault("--onnx true for this model", why=why, fix="--onnx false"))
    axes = [dict.fromkeys(part.free[name], torch.export.Dim.DYNAMIC) for name in part.example]
    with quiet(), torch.no_grad():
        torch.onnx.export(
            part.module,
            tuple(part.example.values()),
            str(path),
            input_names=list(part.example),
            output_names=list(part.outputs),
            dynamo=True,
            dynamic_shapes=(tuple(axes),),
            external_data=False,
            verbose=False,
        )
    part.module.eval()  # exporters have been known to leave a model in training
    written = onnx.load(path)
    _leave_out_sources(written)
    onnx.save(written, path)


def _leave_out_sources(written: "onnx.ModelProto") -> None:
    """Leave out which lines of which files on this machine each node comes from."""
    graph = written.graph
    for part in (*written.functions, *(node for function in written.functions for node in function.node)):
        del part.metadata_props[:]
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves what tracers say to programmers; a branch on a shape that matters is found by comparing."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def told_of(batch: Batch) -> torch.Tensor:
    """Return which logits are compared: (B, L) without padding; all (B, T) of a decoder, whose padding comes last."""
    decoded = batch.get("decoder_input_ids")
    return batch["attention_mask"].bool() if decoded is None else torch.ones_like(decoded, dtype=torch.bool)


@torch.no_grad()
def distance(one: Forward, other: Forward, batches: Sequence[Batch]) -> float:
    """Return the largest difference of a logit of the two models, on tokens that aren't padding."""
    largest = 0.0
    for batch in batches:
        told = told_of(batch)
        first, second = one(**batch), other(**batch)
        for name in logits_of(second):
            largest = max(largest, float((first[name][told].float() - second[name][told].float()).abs().max()))
    return largest


@torch.no_grad()
def relative_distance(one: Forward, other: Forward, batches: Sequence[Batch]) -> float:
    """Return the root mean square of the differences of logits, without padding, as a share of that of the other's."""
    apart, size = 0.0, 0.0
    for batch in batches:
        told = told_of(batch)
        first, second = one(**batch), other(**batch)
        for name in logits_of(second):
            apart += float((first[name][told] - second[name][told]).double().square().sum())
            size += float(second[name][told].double().square().sum())
    return math.sqrt(apart / size)


def refuse_other_rounding(name: str, found: float) -> None:
    """Raise ModelError if an INT8 model doesn't compute what training saw."""
    if not found <= ROUNDED_PARITY:
        why = f"logits are off by {found:.0%} of their size, and rounding moves them by less than {ROUNDED_PARITY:.0%}"
        raise ModelError(Fault(f"{name} is not the model that was trained", why=why, fix="--quantization ptq"))


def refuse_other_writing(name: str, found: float) -> None:
    """Raise ModelError if a model in 32 bits that writes doesn't compute what PyTorch does."""
    if not found <= WRITTEN_PARITY:
        why = f"logits are off by {found:.2%} of their size, and rounding moves them by less than {WRITTEN_PARITY:.2%}"
        raise ModelError(Fault(f"{name} is not the model that was trained", why=why, fix="report it, with config.json"))


def refuse_other_logits(name: str, found: float) -> None:
    """Raise ModelError if a model in 32 bits doesn't compute what PyTorch does."""
    if not found <= PARITY:  # NaN is no parity either
        why = f"a logit differs by {found:.2g} from PyTorch's, and rounding moves none by {PARITY:g}"
        raise ModelError(Fault(f"{name} is not the model that was trained", why=why, fix="report it, with config.json"))
