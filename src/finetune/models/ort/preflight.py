"""Whether ONNX Runtime computes loss and gradients of a model as PyTorch does, tried before a run is entrusted to it.

On the model's own architecture and adaptations with few layers and random weights, in batches of the run's own windows.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from finetune.data.batches import Batch, as_windows, collate
from finetune.data.sampler import window_lengths
from finetune.models import blocks
from finetune.models.adapt import adaptations
from finetune.models.ort import engine
from finetune.params.finetune import FinetuneParams
from finetune.tasks.answering import forward
from finetune.tasks.task import State, Task

if TYPE_CHECKING:
    from onnxruntime.training.ortmodule import ORTModule

SAME = 1e-4  # relative; at most 2e-6 was measured where both compute the same
# Gradients that are 0 but for rounding (of the bias of keys, which softmax takes out) have no first digit in common.
NOTHING = 1e-2  # of the largest gradient
LAYERS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
FEW = 2

Gradients = dict[str, torch.Tensor]


def why_not(
    params: FinetuneParams,
    config: PreTrainedConfig,
    task: Task[State],
    state: State,
    train: Dataset,
    padding: dict[str, int],
) -> str:
    """Return why the model can't be trained by ONNX Runtime; "" where it computes the same loss and gradients."""
    if drawn := layers_left_out(config):
        return f"{drawn} leaves out layers by chance, and a graph of ONNX Runtime has all of them at each step"
    if blocks.kept_of(config) is not None:
        return "ONNX Runtime is not tried with a model that was pruned"
    thin = few_layers(config)
    thin.update(task.model.head_config(state))
    tried = list(batches(train, padding))
    try:
        as_trained = small_model(thin, task, params)
        graph = engine.graph_of(as_trained, tried[0], task.model.inputs)
        computed(graph, as_trained, tried[1], task)  # with dropout nothing can be compared, but it must run
        model = without_dropout(small_model(without_rates(thin), task, params))
        graph = engine.graph_of(deepcopy(model), tried[0], task.model.inputs)
        return next(filter(None, (difference(model, graph, batch, task) for batch in tried)), "")
    except Exception as error:  # whatever its exporter, its graph builder and its kernels raise
        return f"ONNX Runtime can't make or run a graph of a {config.model_type} ({type(error).__name__})"


def small_model(config: PreTrainedConfig, task: Task[State], params: FinetuneParams) -> PreTrainedModel:
    """Return a model of random weights, adapted as the run's own is."""
    torch.manual_seed(params.seed)
    model: PreTrainedModel = task.model.auto_model(config).from_config(config, attn_implementation=engine.ATTENTION)
    adapted = adaptations.adapt(model, params).model
    adapted.train()
    return adapted


def few_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config with at most two layers where it names them as others do; else as it is."""
    thin, known = deepcopy(config), config.to_dict()
    kinds = known.get("layer_types")
    thin.update({name: min(FEW, known[name]) for name in LAYERS if isinstance(known.get(name), int)})
    thin.update({"layer_types": kinds[:FEW]} if kinds else {})
    return thin


def without_rates(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config with every rate of dropout 0: the two engines draw from generators of their own."""
    without, known = deepcopy(config), config.to_dict()
    without.update({name: 0.0 for name, rate in known.items() if "drop" in name and isinstance(rate, float)})
    return without


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without the dropout that stands in no config: of adapters, or a default of a head."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def layers_left_out(config: PreTrainedConfig) -> str:
    """Return what of the config leaves out layers by chance (LayerDrop, Fan et al. 2020); "" where nothing does."""
    found = [name for name, value in config.to_dict().items() if name.endswith("layerdrop") and value]
    return f"{found[0]} {config.to_dict()[found[0]]}" if found else ""


def batches(train: Dataset, padding: dict[str, int]) -> Iterator[Batch]:
    """Yield batches (B, L) of other numbers and lengths of windows, the first without padding: its graph must hold for
    all of them."""
    order = np.argsort(window_lengths(train)).tolist()
    shortest, middle, longest = order[0], order[len(order) // 2], order[-1]
    for places in ([shortest, shortest], [shortest, middle, longest], [longest]):
        yield collate(as_windows(train[places]), padding)


def difference(model: PreTrainedModel, graph: "ORTModule", batch: Batch, task: Task[State]) -> str:
    """Return in what the graph differs from the model on a batch; "" where it doesn't."""
    loss, gradients = computed(model, model, batch, task)
    other, others = computed(graph, graph.module.model, batch, task)
    if not abs(other - loss) <= SAME * abs(loss):
        return f"ONNX Runtime's loss is {other:.6g} where PyTorch's is {loss:.6g}"
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        apart = float((others[name] - gradient).abs().max()) / max(float(gradient.abs().max()), NOTHING * largest)
        if not apart <= SAME:
            return f"ONNX Runtime's gradient of {name} differs from PyTorch's by {apart:.0e} of it"
    return ""


def computed(called: nn.Module, model: PreTrainedModel, batch: Batch, task: Task[State]) -> tuple[float, Gradients]:
    """Return the loss that `called` gives, and the gradient of each weight of the model that is trained."""
    model.zero_grad()
    loss = task.objective.loss(forward(called, batch, task.model.inputs), batch).sum()
    loss.backward()
    return float(loss.detach()), {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
