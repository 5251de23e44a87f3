"""Turn a model that writes into graphs of OpenVINO: what an encoder has read, and one step of a decoder behind others.

Shapes as in `models.openvino_writer`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from finetune.backends.graphs.conversion import quiet
from finetune.data.batches import Batch
from finetune.models.openvino import DECODER, ENCODER, IR
from finetune.models.openvino_writer import KEPT, PAST, PRESENT, READ, cache_of, names_of, tensors_of

if TYPE_CHECKING:
    import openvino

BEFORE = 3  # tokens that the example of a step stands behind


class Read(torch.nn.Module):
    """From a source to the keys and values (B, 2 N, H, L, D) that the decoder's layers make of it, once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.sizes = [(tensor.shape[1], tensor.shape[3]) for tensor in tensors_of(_cached(model))]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        def empty() -> Cache:  # with sizes: an empty cache of transformers has none, which a graph can't add to
            return cache_of([torch.zeros(input_ids.shape[0], heads, 0, size) for heads, size in self.sizes])

        cache = EncoderDecoderCache(empty(), empty())
        first = input_ids[:, :1]  # any token will do: what is read doesn't depend on what is written
        self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=first, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        return torch.stack(tensors_of(cache.cross_attention_cache), 1)


class EncodedStep(torch.nn.Module):
    """One step of an encoder-decoder's decoder: from tokens (B, T), and those before, to logits (B, T, V)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, decoder_input_ids: torch.Tensor, attention_mask: torch.Tensor, read: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        layers = len(past) // 2
        cache = EncoderDecoderCache(cache_of([*past]), cache_of([*read.unbind(1)]))
        cache.is_updated = dict.fromkeys(range(layers), True)  # so that nothing is computed from `states`
        states = torch.zeros(read.shape[0], read.shape[3], 1)
        outputs = self.model(
            encoder_outputs=BaseModelOutput(states), attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids, past_key_values=cache, use_cache=True,
        )  # fmt: skip
        return (outputs["logits"], *tensors_of(cache.self_attention_cache))


class Step(torch.nn.Module):
    """One step of a decoder alone: logits (B, K, V) at the places `kept` (K,) among its T tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        kept: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        cache = cache_of([*past])
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
            use_cache=True, logits_to_keep=kept,
        )  # fmt: skip
        return (outputs["logits"], *tensors_of(cache))


@torch.no_grad()
def graphs_of(model: PreTrainedModel) -> dict[str, "openvino.Model"]:
    """Return the graphs by the names of their files, in 32 bits."""
    before = model.eval().config._attn_implementation
    if not model.config.is_encoder_decoder:
        # The fused kind of attention gives NaN for what is padded on the left, where there is no token to be seen.
        model.set_attn_implementation("eager")
    try:
        with quiet():
            return _encoder_decoder(model) if model.config.is_encoder_decoder else _decoder(model)
    finally:
        model.set_attn_implementation(before)


def in_steps(
    writer: PreTrainedModel,
    *,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    decoder_input_ids: torch.Tensor | None = None,
) -> ModelOutput:
    """Return the logits of a batch as a writer comes to them: of some tokens, of one behind them, and of the rest."""
    tokens = input_ids if decoder_input_ids is None else decoder_input_ids
    half = tokens.shape[1] // 2
    logits: list[torch.Tensor] = []
    past, end = None, 0
    for step in tokens.tensor_split([half, half + 1], dim=1):
        end += step.shape[1]
        if not step.shape[1]:
            continue
        if decoder_input_ids is None:
            outputs = writer(input_ids=step, attention_mask=attention_mask[:, :end], past_key_values=past)
        else:
            given = {"input_ids": input_ids, "attention_mask": attention_mask}
            outputs = writer(**given, decoder_input_ids=step, past_key_values=past)
        past = outputs["past_key_values"]
        logits.append(outputs["logits"])
    return ModelOutput(logits=torch.cat(logits, 1))


def _encoder_decoder(model: PreTrainedModel) -> dict[str, "openvino.Model"]:
    ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    read = Read(model)
    example = {"input_ids": ids, "attention_mask": mask}
    states = read(**example)
    heads, size = states.shape[2], states.shape[4]
    encoder = _converted(read, example, [READ], {})
    past = _past(states.shape[1] // 2, heads, size)
    step = {"decoder_input_ids": ids[:, :2], "attention_mask": mask, READ: states, **past}
    sizes = {READ: (-1, states.shape[1], heads, -1, size), **dict.fromkeys(past, (-1, heads, -1, size))}
    outputs = ["logits", *names_of(len(past) // 2, PRESENT)]
    return {ENCODER: encoder, DECODER: _converted(EncodedStep(model), step, outputs, sizes)}


def _decoder(model: PreTrainedModel) -> dict[str, "openvino.Model"]:
    cached = tensors_of(_cached(model))
    heads, size = cached[0].shape[1], cached[0].shape[3]
    past = _past(len(cached) // 2, heads, size)
    mask = torch.ones(2, BEFORE + 2, dtype=torch.long)
    mask[1, :2] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, BEFORE:]
    step = {"input_ids": torch.zeros(2, 2, dtype=torch.long), "attention_mask": mask, "position_ids": places}
    step |= {KEPT: torch.tensor([1]), **past}
    outputs = ["logits", *names_of(len(past) // 2, PRESENT)]
    return {IR: _converted(Step(model), step, outputs, dict.fromkeys(past, (-1, heads, -1, size)))}


def _cached(model: PreTrainedModel) -> Cache:
    """Return the cache of a decoder behind one token."""
    ids = torch.zeros(1, 1, dtype=torch.long)
    given = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    cache: Cache = model(input_ids=ids, use_cache=True, **given)["past_key_values"]
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def _past(layers: int, heads: int, size: int) -> Batch:
    return {name: torch.randn(2, heads, BEFORE, size) for name in names_of(layers, PAST)}


def _converted(
    module: torch.nn.Module, example: Batch, outputs: list[str], sizes: Mapping[str, tuple[int, ...]]
) -> "openvino.Model":
    """Return the graph of a module with these inputs, in order, and the sizes of some of them, -1 where any will do."""
    import openvino

    graph = openvino.convert_model(module, example_input=tuple(example.values()))
    for names, ports in ((list(example), graph.inputs), (outputs, graph.outputs)):
        for name, port in zip(names, ports, strict=True):
            port.get_tensor().set_names({name})
    if sizes:
        graph.reshape({name: openvino.PartialShape(size) for name, size in sizes.items()})
    return graph
