"""Pruning: gates on attention heads and feed-forward columns, which close while the model is trained.

What a gate is worth is learnt like a weight, through gates that are fully open or closed (movement pruning, Sanh et
al. 2020, on the blocks of Lagunas et al. 2021), or is the square of its gradient, summed over the steps (Molchanov et
al. 2019). After training, what is behind closed gates is cut out.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.core.console import say
from finetune.models import blocks
from finetune.models.blocks import Layer
from finetune.params.finetune import EncoderParams, FinetuneParams

GATE_RATE = 1e-2  # learning rate of the gates (Sanh et al. 2020)
FEWEST_COLUMNS = 8  # of a layer; of heads it is 1
TILES = (64, 8, 1)  # columns that matrix units take at once: 64 of INT8 in AMX, 8 of 16 bits in tensor cores
SOFTMAX = 15  # multiplications in the time of one element of a softmax


def wanted(params: FinetuneParams) -> bool:
    return isinstance(params, EncoderParams) and params.apply_pruning


class Gates(nn.Module):
    """Gates before blocks of equal width, each with a score: 1 where a gate is open, 0 where it is closed."""

    def __init__(self, count: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.width = width
        self.scores = nn.Parameter(torch.zeros(count, device=device))
        self.gates: Tensor
        self.register_buffer(blocks.GATES, torch.ones(count, device=device))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs (…, gates * width), 0 behind closed gates; the gradient of a gate goes to its score."""
        gates = self.gates + (self.scores - self.scores.detach())
        return inputs * gates.repeat_interleave(self.width).to(inputs.dtype)

    def open_columns(self) -> Tensor:
        """Return (gates * width): 1 for what comes through, 0 for what doesn't."""
        return self.gates.repeat_interleave(self.width)

    def open_places(self) -> list[int]:
        """Return the places of the blocks that stay."""
        return [int(place) for place in self.gates.nonzero()]


class GatedLinear(nn.Linear):
    """A linear layer whose inputs come through gates."""

    def __init__(self, plain: nn.Linear, gate: Gates) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.gate = gate

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(self.gate(inputs))


class Gated(NamedTuple):
    """A layer with gates."""

    heads: Gates
    columns: Gates
    layer: Layer


def gated_layers(model: PreTrainedModel) -> list[Gated]:
    """Return the layers of a model that `apply` has put gates on."""
    found = blocks.layers(model)
    return [Gated(cast(Gates, layer.outward.gate), cast(Gates, layer.down.gate), layer) for layer in found]


def apply(model: PreTrainedModel, params: FinetuneParams) -> tuple[PreTrainedModel, list[str]]:
    """Put a gate on every head and column. Return the model, and the lines to print."""
    names = {module: name for name, module in model.named_modules()}
    found = blocks.layers(model)
    for layer in found:
        for plain, width in ((layer.outward, layer.head_size), (layer.down, 1)):
            gate = Gates(plain.in_features // width, width, plain.weight.device)
            model.set_submodule(names[plain], GatedLinear(plain, gate))
    weights = sum(layer.heads * layer.weights_of_head + layer.columns * layer.weights_of_column for layer in found)
    heads, columns = sum(layer.heads for layer in found), sum(layer.columns for layer in found)
    ratio = cast(EncoderParams, params).pruning_ratio
    of = f"{weights:,} weights of {heads} heads and {columns:,} feed-forward columns"
    return model, [f"pruning: {ratio:.0%} of the {of} will be cut"]


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without gates, and without what is behind those that are closed."""
    gated = gated_layers(model)
    names = {module: name for name, module in model.named_modules()}
    kept = [(layer.heads.open_places(), layer.columns.open_places()) for layer in gated]
    for _, _, layer in gated:
        for linear in (layer.outward, layer.down):
            model.set_submodule(names[linear], blocks.plain(linear))
    before = model.num_parameters()
    blocks.cut(model, kept)
    heads, columns = (f"{sum(len(of) for of in every):,}" for every in zip(*kept, strict=True))
    sizes = f"{before / 1e6:.1f} million weights are {model.num_parameters() / 1e6:.1f} million"
    say(f"pruned to {heads} heads and {columns} feed-forward columns: {sizes}")
    return model


def ratio_at(step: int, steps: int, ratio: float) -> float:
    """Return the share of the weights that is closed after a step: a cubic course (Zhu & Gupta 2017), then all of it.

    It begins after a tenth of the steps, when scores say something, and leaves the last four tenths to recover.
    """
    first, last = begin_and_end(steps)
    passed = min(max((step - first) / (last - first), 0), 1)
    return ratio * (1 - (1 - passed) ** 3)


def begin_and_end(steps: int) -> tuple[int, int]:
    """Return the steps after which the first gates close and the last have closed."""
    first = steps // 10
    return first, max(first + 1, 6 * steps // 10)


class Block(NamedTuple):
    """A head or a column: what goes with it."""

    weights: int
    cost: float  # multiplications of a window, and what else it does as multiplications of as much time
    together: int  # blocks of a layer that close together
    fewest: int  # blocks of a layer that stay


class Groups(NamedTuple):
    """The blocks of one kind in a layer, in groups that close together; those of most worth come first."""

    gate: Gates
    places: Tensor  # of the blocks: (groups, blocks of a group)
    worths: Tensor  # (groups)
    weights: Tensor  # (groups)
    spared: Tensor  # (groups): whether it stays open in any case


def close(gated: Sequence[Gated], ratio: float, method: str, length: float) -> None:
    """Close the gates of least worth that hold this share of the weights; the others open, even if they were closed.

    `length` is that of a window, in tokens, on which the time that a head takes depends.
    """
    heads = [(layer.heads, _head(layer.layer, length)) for layer in gated]
    columns = [(layer.columns, _column(layer.layer, length)) for layer in gated]
    found = []
    for kind in (heads, columns):
        scores = torch.cat([gate.scores.detach().double() for gate, _ in kind])
        found += [_grouped(gate, block, scores, method) for gate, block in kind]
    opened = _open(found, ratio).split([len(groups.worths) for groups in found])
    for groups, values in zip(found, opened, strict=True):
        groups.gate.gates[groups.places] = values[:, None].to(groups.gate.gates.dtype)


def _head(layer: Layer, length: float) -> Block:
    hidden = layer.outward.out_features
    cost = 4 * length * layer.head_size * hidden + length**2 * (2 * layer.head_size + SOFTMAX)
    return Block(layer.weights_of_head, cost, together=1, fewest=1)


def _column(layer: Layer, length: float) -> Block:
    cost = 2 * length * layer.down.out_features
    return Block(layer.weights_of_column, cost, tile_of(layer.columns), FEWEST_COLUMNS)


def tile_of(columns: int) -> int:
    """Return how many columns close together: a full tile, if that is at most a sixteenth of the layer's."""
    return next(tile for tile in TILES if tile == 1 or (columns % tile == 0 and columns >= 16 * tile))


def _grouped(gate: Gates, block: Block, scores: Tensor, method: str) -> Groups:
    """Return the blocks behind a layer's gates in groups; `scores` are those of all blocks of the kind."""
    worth, places = _worth(gate.scores.detach().double(), scores, block, method).sort(descending=True, stable=True)
    worths = worth.view(-1, block.together).mean(1)
    weights = torch.full_like(worths, block.together * block.weights)
    spared = torch.arange(len(worths), device=worths.device) * block.together < block.fewest
    return Groups(gate, places.view(-1, block.together), worths, weights, spared)


def _worth(own: Tensor, of_kind: Tensor, block: Block, method: str) -> Tensor:
    """Return what the blocks of a layer are worth. Of two that are worth the same, the slower one should go.

    Learnt scores have neither a zero nor a unit: they are counted in standard deviations of their kind, one of which is
    as much as e times the time for each weight. Squared gradients are worth for time.
    """
    if method == "taylor":
        return own / block.cost
    spread = of_kind.std().clamp(min=torch.finfo(torch.float32).tiny)
    return (own - of_kind.mean()) / spread - math.log(block.cost / block.weights)


def _open(found: Sequence[Groups], ratio: float) -> Tensor:
    """Return which groups are open: those of most worth that fit into what is left, and those that are spared."""
    worths, weights, spared = (
        torch.cat(every)
        for every in zip(*((groups.worths, groups.weights, groups.spared) for groups in found), strict=True)
    )
    order = worths.masked_fill(spared, math.inf).argsort(descending=True, stable=True)
    fits = weights[order].cumsum(0) <= (1 - ratio) * weights.sum() * (1 + 1e-12)
    opened = spared.clone()
    opened[order[fits]] = True
    return opened


def add_squared_gradients(gated: Sequence[Gated]) -> None:
    """Add to each score the square of its gradient."""
    for layer in gated:
        for gate in (layer.heads, layer.columns):
            if gate.scores.grad is not None:
                gate.scores.data.add_(gate.scores.grad**2)


def scores_of(gated: Sequence[Gated]) -> list[nn.Parameter]:
    return [gate.scores for layer in gated for gate in (layer.heads, layer.columns)]
