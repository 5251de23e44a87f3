"""A model's forward and backward pass as a graph of ONNX Runtime, on the weights and gradients of the model itself."""

import logging
import warnings
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.data.batches import Batch
from finetune.models.ort import shim
from finetune.tasks.answering import forward

if TYPE_CHECKING:
    from onnxruntime.training.ortmodule import ORTModule

ATTENTION = "eager"  # of scaled_dot_product_attention with dropout it can't build the gradient


class Tensors(nn.Module):
    """A model of which a graph can be made: its outputs are tensors alone, without what it caches while it writes."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.model(**inputs)
        return {name: output for name, output in outputs.items() if isinstance(output, Tensor)}


def graph_of(model: PreTrainedModel, example: Batch, inputs: frozenset[str]) -> "ORTModule":
    """Return what is called as the model is while it is trained; the graph is made from the example, which has no
    padding and more than one window.

    Raises: whatever the exporter or ONNX Runtime raise where they can't.
    """
    logging.getLogger("orttraining").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # whether it holds for other batches is asked by the preflight
        ort_module, options = shim.ort_module()
        graph = ort_module(Tensors(model).train(), options)
        forward(graph, example, inputs)
    return graph


def seed(value: int) -> None:
    """Let ONNX Runtime draw its dropout from this seed on: it has a generator of its own, which no checkpoint holds."""
    import onnxruntime

    onnxruntime.set_seed(value)
