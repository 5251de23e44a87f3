"""Quantisation-aware training: in the forward pass, weights and inputs of linear layers are rounded to 8 bits.

What training sees is what an INT8 runtime computes: weights symmetric, with a scale for each row, inputs asymmetric,
with a range for each layer. Rounding passes gradients on as they are (Bengio et al. 2013); the edges of
a range learn from what lies beyond them (PACT, Choi et al. 2018). It is the transformer preset of NNCF, whose kernels
have to be compiled first; these are PyTorch's own.
"""

import math
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from finetune.core.errors import Fault, ModelError
from finetune.data.batches import Batch
from finetune.models import blocks
from finetune.models.adapt.pruning import GatedLinear
from finetune.params.finetune import EncoderParams, FinetuneParams

KEY = "input_ranges"  # entry of config.json: the name of a linear layer -> the edges of its inputs
# Weights have 127 steps, not 255: processors without VNNI add two products of 8 bits in 16 bits, where larger ones
# overflow. Training makes up for it, and the model computes the same on all of them.
LARGEST_WEIGHT, LARGEST_INPUT = 63, 255
TINY = 1e-8  # the least step of a grid


def wanted(params: FinetuneParams) -> bool:
    return isinstance(params, EncoderParams) and params.apply_qat


def on_weight_grid(weight: Tensor, columns: Tensor | None = None) -> Tensor:
    """Return a matrix (rows, columns), each row rounded to 127 numbers from its largest one to minus that.

    `columns` is (columns,): 1 for those that stay, 0 for those that will be cut, which set no scale.
    """
    known = weight.detach() if columns is None else weight.detach() * columns
    scale = (known.abs().amax(dim=1) / LARGEST_WEIGHT).clamp(min=TINY)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -LARGEST_WEIGHT, LARGEST_WEIGHT)


class _OnInputGrid(torch.autograd.Function):
    """Inputs rounded to 256 steps between two edges; what lies beyond comes to the edge, and moves it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, edges: Tensor) -> Tensor:
        low, high = _span(edges)
        ctx.save_for_backward(inputs < low, inputs > high)
        return _rounded(inputs, edges)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        below, above = ctx.saved_tensors
        of_edges = [gradient.masked_select(beyond).sum() for beyond in (below, above)]
        return gradient.masked_fill(below | above, 0), torch.stack(of_edges)


def _span(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the edges of a grid, between which 0 lies."""
    return edges[0].clamp(max=0), edges[1].clamp(min=0)


def _steps(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of two numbers of a grid, (), and the place of 0 among them, (): it is one of them."""
    low, high = _span(edges)
    scale = ((high - low) / LARGEST_INPUT).clamp(min=TINY)
    return scale, (-low / scale).round().to(torch.int32)


def _rounded(inputs: Tensor, edges: Tensor) -> Tensor:
    scale, zero = _steps(edges)
    return torch.fake_quantize_per_tensor_affine(inputs, scale, zero, 0, LARGEST_INPUT)


class InputGrid(nn.Module):
    """The range of a layer's inputs, which `calibrate` sets and training moves."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.edges = nn.Parameter(torch.zeros(2, device=device))
        self.seen: list[Tensor] | None = None  # while it is calibrated: the edges of each batch
        self.fixed: tuple[float, int] | None = None  # for a converter, in whose graph they are constants

    def forward(self, inputs: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.append(torch.stack([inputs.min(), inputs.max()]))
            return inputs
        if self.fixed is not None:
            return torch.fake_quantize_per_tensor_affine(inputs, *self.fixed, 0, LARGEST_INPUT)
        if not torch.is_grad_enabled():
            return _rounded(inputs.float(), self.edges)
        found: Tensor = _OnInputGrid.apply(inputs.float(), self.edges)  # type: ignore[no-untyped-call]
        return found


class QuantisedLinear(nn.Linear):
    """A linear layer whose weights are on a grid; so are its inputs, by a grid that other layers may share.

    What is behind closed gates sets no scale of weights, and no range that is calibrated: it computes what it will when
    that is cut out.
    """

    def __init__(self, plain: nn.Linear, grid: InputGrid, owns: bool) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        if owns:
            self.grid = grid
        else:
            object.__setattr__(self, "grid", grid)  # of the first layer: in a checkpoint it stands once
        self.gate = plain.gate if isinstance(plain, GatedLinear) else None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.gate is None:
            return functional.linear(self.grid(inputs), on_weight_grid(self.weight), self.bias)
        weight = on_weight_grid(self.weight, self.gate.open_columns())
        if self.grid.seen is not None:  # a range is that of what comes through
            return functional.linear(self.grid(self.gate(inputs)), weight, self.bias)
        return functional.linear(self.gate(self.grid(inputs)), weight, self.bias)  # a gate sees what saturates too

    def without_grids(self) -> nn.Linear:
        """Return the layer as it was before."""
        plain = blocks.plain(self)
        return plain if self.gate is None else GatedLinear(plain, self.gate)


class QuantisedEmbedding(nn.Embedding):
    """A table of words whose rows are on grids."""

    def __init__(self, plain: nn.Embedding) -> None:
        super().__init__(plain.num_embeddings, plain.embedding_dim, plain.padding_idx, device="meta")
        self.weight = plain.weight
        self.whole = False  # whether all rows are rounded first, so that a converter finds the table, and not before

    def forward(self, ids: Tensor) -> Tensor:
        if self.whole:
            return functional.embedding(ids, on_weight_grid(self.weight), self.padding_idx)
        rows = super().forward(ids)  # (B, L, hidden)
        return on_weight_grid(rows.flatten(0, -2)).view_as(rows)


class Quantised(NamedTuple):
    """The layers of a model that are on grids, by their names."""

    linear: dict[str, QuantisedLinear]
    words: dict[str, QuantisedEmbedding]

    @property
    def grids(self) -> dict[str, InputGrid]:
        """The grids of inputs, each by the first layer that has it."""
        first: dict[InputGrid, str] = {}
        for name, layer in self.linear.items():
            first.setdefault(layer.grid, name)
        return {name: grid for grid, name in first.items()}


def quantised(model: PreTrainedModel) -> Quantised:
    modules = dict(model.named_modules())
    linear = {name: module for name, module in modules.items() if isinstance(module, QuantisedLinear)}
    words = {name: module for name, module in modules.items() if isinstance(module, QuantisedEmbedding)}
    return Quantised(linear, words)


def apply(model: PreTrainedModel, params: FinetuneParams) -> tuple[PreTrainedModel, list[str]]:
    """Put the layers on grids. Return the model, and the lines to print."""
    quantise(model)
    layers = len(quantised(model).linear)
    return model, [f"quantisation-aware training: {layers} linear layers and the table of words are rounded to 8 bits"]


def quantise(model: PreTrainedModel) -> None:
    """Replace the linear layers of every block, and the table of words."""
    names = {module: name for name, module in model.named_modules()}
    for layer in blocks.layers(model):
        for together in (layer.inward, (layer.outward,), (layer.up,), (layer.down,)):
            grid = InputGrid(together[0].weight.device)
            for i, plain in enumerate(together):
                model.set_submodule(names[plain], QuantisedLinear(plain, grid, owns=i == 0))
    words = model.get_input_embeddings()
    assert isinstance(words, nn.Embedding)
    model.set_submodule(names[words], QuantisedEmbedding(words))


@torch.no_grad()
def calibrate(model: PreTrainedModel, batches: Iterable[Batch]) -> None:
    """Set each range to the least and the largest number of a batch, on average over the batches."""
    grids = quantised(model).grids.values()
    training = model.training
    model.eval()
    for grid in grids:
        grid.seen = []
    for batch in batches:
        model(**batch)
    for grid in grids:
        assert grid.seen
        grid.edges.copy_(torch.stack(grid.seen).mean(dim=0))
        grid.seen = None
    model.train(training)


def edges_of(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the edges of all ranges; none where the model isn't quantised."""
    return [grid.edges for grid in quantised(model).grids.values()]


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with plain layers, the ranges of their inputs in its config."""
    found = quantised(model)
    if not found.linear:
        return model
    ranges = {name: grid.edges.detach().tolist() for name, grid in found.grids.items()}
    for name, layer in found.linear.items():
        model.set_submodule(name, layer.without_grids())
    for name, table in found.words.items():
        words = nn.Embedding(table.num_embeddings, table.embedding_dim, table.padding_idx, device="meta")
        words.weight = table.weight
        model.set_submodule(name, words)
    setattr(model.config, KEY, ranges)
    return model


def forget(model: PreTrainedModel) -> None:
    """Leave out of the config the ranges of a model that is about to be trained: they will be others."""
    if hasattr(model.config, KEY):
        delattr(model.config, KEY)


def as_trained(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a copy that rounds as in training, for a converter; None for a model that was trained without rounding.

    Raises: ModelError if its config has other ranges than the model has layers.
    """
    ranges = model.config.to_dict().get(KEY)
    if ranges is None:
        return None
    copy: PreTrainedModel = deepcopy(model).eval()
    quantise(copy)
    found = quantised(copy)
    if not isinstance(ranges, dict) or ranges.keys() != found.grids.keys() or not all(map(_is_range, ranges.values())):
        why = f"{KEY} must hold two numbers for each of {len(found.grids)} layers"
        fix = "give the config.json that came with the model"
        raise ModelError(Fault("config.json does not say how the model was quantised", why=why, fix=fix))
    for name, grid in found.grids.items():
        scale, zero = _steps(torch.tensor(ranges[name]))
        grid.fixed = float(scale), int(zero)
    for table in found.words.values():
        table.whole = True
    return copy


def _is_range(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and all(isinstance(edge, int | float) and not isinstance(edge, bool) and math.isfinite(edge) for edge in entry)
    )
