"""The blocks of a transformer that can be cut out: attention heads, and columns of the feed-forward layers.

Without them the model has fewer multiplications of the same kind, on any machine (Michel et al. 2019; Lagunas et al.
2021). What is left of each layer stands in config.json, since transformers has one number of heads for all layers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from finetune.core.errors import Fault, ModelError
from finetune.core.reading import Unreadable, made

GATES = "gates"  # the name under which a checkpoint has, for each block of a layer, whether it will stay
KEY = "pruned_layers"  # entry of config.json that holds a `Kept` for each layer


@dataclass(frozen=True)
class Names:
    """The names of a family's layers and, within each, of its linear layers."""

    layers: str
    inward: tuple[str, str, str]  # query, key and value
    outward: str
    up: str
    down: str


_OF_BERT = Names(
    layers="encoder.layer",
    inward=("attention.self.query", "attention.self.key", "attention.self.value"),
    outward="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
)
_OF_DISTILBERT = Names(
    layers="transformer.layer",
    inward=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    outward="attention.out_lin",
    up="ffn.lin1",
    down="ffn.lin2",
)
_OF_MPNET = Names(
    layers="encoder.layer",
    inward=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    outward="attention.attn.o",
    up="intermediate.dense",
    down="output.dense",
)
# model type -> its names. Each is proved by tests/models/test_blocks.py; ALBERT's layers are one, DeBERTa's attention
# has positions of its own for each head.
FAMILIES = {
    "bert": _OF_BERT,
    "camembert": _OF_BERT,
    "distilbert": _OF_DISTILBERT,
    "electra": _OF_BERT,
    "mpnet": _OF_MPNET,
    "roberta": _OF_BERT,
    "xlm-roberta": _OF_BERT,
}


class Layer(NamedTuple):
    """The linear layers of one layer. Attention is `heads` blocks of `head_size`, the feed-forward `columns` of 1."""

    inward: tuple[nn.Linear, ...]  # query, key and value, each (heads * head_size, hidden)
    outward: nn.Linear  # (hidden, heads * head_size)
    up: nn.Linear  # (columns, hidden)
    down: nn.Linear  # (hidden, columns)
    head_size: int

    @property
    def heads(self) -> int:
        return self.outward.in_features // self.head_size

    @property
    def columns(self) -> int:
        return self.down.in_features

    @property
    def weights_of_head(self) -> int:
        """The numbers that go with a head: its share of four matrices, and of the biases of three."""
        return self.head_size * (4 * self.outward.out_features + 3)

    @property
    def weights_of_column(self) -> int:
        return 2 * self.down.out_features + 1


@dataclass(frozen=True)
class Kept:
    """What is kept of a layer: which of the family's heads, and how many columns."""

    heads: list[int]
    columns: int


def layers(model: PreTrainedModel) -> list[Layer]:
    """Return the layers of a model whose family is in FAMILIES."""
    names, size = FAMILIES[model.config.model_type], model.config.hidden_size // model.config.num_attention_heads
    found = []
    for layer in model.base_model.get_submodule(names.layers).children():
        inward = tuple(linear(layer, name) for name in names.inward)
        outward, up, down = (linear(layer, name) for name in (names.outward, names.up, names.down))
        found.append(Layer(inward, outward, up, down, size))
    return found


def linear(layer: nn.Module, name: str) -> nn.Linear:
    """Return a linear layer by its name. Raises: TypeError if it isn't one."""
    module = layer.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{name} is a {type(module).__name__}")
    return module


def plain(layer: nn.Linear) -> nn.Linear:
    """Return a plain linear layer with the weights of one that does more."""
    found = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    found.weight, found.bias = layer.weight, layer.bias
    return found


def cut(model: PreTrainedModel, kept: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Leave of each layer the heads and the columns with these places, and store in the config which those are."""
    before = kept_of(model.config) or [Kept(list(range(layer.heads)), layer.columns) for layer in layers(model)]
    for layer, (heads, columns) in zip(layers(model), kept, strict=True):
        _cut_layer(layer, heads, columns)
    now = [
        Kept([was.heads[place] for place in heads], len(columns))
        for was, (heads, columns) in zip(before, kept, strict=True)
    ]
    setattr(model.config, KEY, [asdict(layer) for layer in now])
    _tell_attention(model, now)


def _cut_layer(layer: Layer, heads: Sequence[int], columns: Sequence[int]) -> None:
    within = [head * layer.head_size + place for head in heads for place in range(layer.head_size)]
    for part in layer.inward:
        _select(part, within, dim=0)
    _select(layer.outward, within, dim=1)
    _select(layer.up, columns, dim=0)
    _select(layer.down, columns, dim=1)


def _select(part: nn.Linear, places: Sequence[int], dim: int) -> None:
    """Keep these rows (dim 0, of what comes out) or columns (dim 1, of what goes in) of a linear layer."""
    index = torch.tensor(places, dtype=torch.long, device=part.weight.device)
    part.weight = nn.Parameter(part.weight.detach().index_select(dim, index), part.weight.requires_grad)
    if dim == 1:
        part.in_features = len(places)
        return
    part.out_features = len(places)
    if part.bias is not None:
        part.bias = nn.Parameter(part.bias.detach().index_select(0, index), part.bias.requires_grad)


def _tell_attention(model: PreTrainedModel, kept: Sequence[Kept]) -> None:
    """MPNet's attention holds its width, and adds to the scores of each head a bias that all layers share."""
    if model.config.model_type != "mpnet":
        return
    found = model.base_model.get_submodule(FAMILIES["mpnet"].layers).children()
    for layer, of_layer, left in zip(found, layers(model), kept, strict=True):
        attention: Any = layer.get_submodule("attention.attn")
        attention.num_attention_heads = len(left.heads)
        attention.all_head_size = of_layer.outward.in_features
        attention._forward_pre_hooks.clear()
        attention.register_forward_pre_hook(partial(_with_own_bias, left.heads))


def _with_own_bias(heads: list[int], module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    hidden_states, attention_mask, position_bias = inputs  # the bias is (1, heads of the family, L, L)
    return hidden_states, attention_mask, position_bias[:, heads]


def kept_of(config: PreTrainedConfig) -> list[Kept] | None:
    """Return what the config says is kept of each layer; None for a model of which nothing was cut.

    Raises: ModelError if it says what can't be.
    """
    entry = config.to_dict().get(KEY)
    if entry is None:
        return None
    try:
        found: list[Kept] = [made(Kept, layer, f"{KEY}[{i}]") for i, layer in enumerate(_listed(entry))]
        _refuse_impossible(config, found)
    except Unreadable as reason:
        what = f"config.json does not say how its {config.model_type} was pruned"
        fix = "give the config.json that came with the model"
        raise ModelError(Fault(what, why=str(reason), fix=fix)) from None
    return found


def _listed(entry: object) -> list[object]:
    if not isinstance(entry, list):
        raise Unreadable(f"{KEY} is not a list")
    return entry


def _refuse_impossible(config: PreTrainedConfig, kept: list[Kept]) -> None:
    if config.model_type not in FAMILIES:
        raise Unreadable(f"{KEY} is of another family")
    if len(kept) != config.num_hidden_layers:
        raise Unreadable(f"{KEY} has {len(kept)} layers, num_hidden_layers is {config.num_hidden_layers}")
    sizes = config.to_dict()
    widest = sizes["hidden_dim"] if config.model_type == "distilbert" else sizes["intermediate_size"]
    for i, layer in enumerate(kept):
        if not layer.heads or layer.heads != sorted({*layer.heads} & {*range(config.num_attention_heads)}):
            raise Unreadable(f"{KEY}[{i}].heads are {layer.heads}, of {config.num_attention_heads}")
        if not 0 < layer.columns <= widest:
            raise Unreadable(f"{KEY}[{i}].columns is {layer.columns}, of {widest}")


def shape(model: PreTrainedModel) -> None:
    """Give the layers of a new model the shapes that its config says; what is in them is loaded after that."""
    kept = kept_of(model.config)
    if kept is None:
        return
    for layer, left in zip(layers(model), kept, strict=True):
        _cut_layer(layer, range(len(left.heads)), range(left.columns))
    _tell_attention(model, kept)


def shaped_class(plain: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a class by which transformers builds a pruned model before it loads the weights."""

    def build(self: PreTrainedModel, config: PreTrainedConfig) -> None:
        plain.__init__(self, config)
        shape(self)

    return type(plain.__name__, (plain,), {"__init__": build, "__module__": plain.__module__})
