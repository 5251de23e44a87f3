"""What becomes a graph of a model that writes: reading a source, and one step of a decoder behind others.

Shapes as in `models.writer`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from finetune.backends.graphs.conversion import MODEL, Part
from finetune.data.batches import Batch
from finetune.models.writer import CROSS, KEPT, PAST, PRESENT, READ, cache_of, names_of, tensors_of

ENCODER_MODEL, DECODER_MODEL = "encoder_model", "decoder_model"
BEFORE = 3  # tokens that the example of a step stands behind


class Read(torch.nn.Module):
    """From a source to the keys and values (B, 2 N, H, L, D) that the decoder's layers make of it, once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.sizes = [(tensor.shape[1], tensor.shape[3]) for tensor in tensors_of(cached(model))]

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor]:
        input_ids, attention_mask = given

        def empty() -> Cache:  # with sizes: an empty cache of transformers has none, which a graph can't add to
            return cache_of([torch.zeros(input_ids.shape[0], heads, 0, size) for heads, size in self.sizes])

        cache = EncoderDecoderCache(empty(), empty())
        first = input_ids[:, :1]  # any token will do: what is read doesn't depend on what is written
        with eager(self.model):
            self.model(
                input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=first, past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
        return (torch.stack(tensors_of(cache.cross_attention_cache), 1),)


class EncodedStep(torch.nn.Module):
    """One step of an encoder-decoder's decoder: from tokens (B, T), and those before, to logits (B, T, V)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        decoder_input_ids, attention_mask, *both = given
        cross, past = both[: len(both) // 2], both[len(both) // 2 :]
        cache = EncoderDecoderCache(cache_of(past), cache_of(cross))
        cache.is_updated = dict.fromkeys(range(len(past) // 2), True)  # so that nothing is computed from `states`
        states = torch.zeros(cross[0].shape[0], cross[0].shape[2], 1)
        with eager(self.model):
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

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        input_ids, attention_mask, position_ids, kept, *past = given
        cache = cache_of(past)
        with eager(self.model):
            outputs = self.model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
                use_cache=True, logits_to_keep=kept,
            )  # fmt: skip
        return (outputs["logits"], *tensors_of(cache))


@contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """Let attention be computed part by part.

    The fused kind gives NaN for padding on the left, which sees no token, and is slower in OpenVINO's steps.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def parts_of(model: PreTrainedModel) -> dict[str, Part]:
    """Return what becomes a graph, by the names of the graphs."""
    return _encoder_decoder(model.eval()) if model.config.is_encoder_decoder else _decoder(model.eval())


def _encoder_decoder(model: PreTrainedModel) -> dict[str, Part]:
    ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    source = {"input_ids": ids, "attention_mask": mask}
    (read,) = Read(model)(*source.values())
    past = _past([*read.unbind(1)])
    cross = {name: one.contiguous() for name, one in zip(names_of(len(past) // 2, CROSS), read.unbind(1), strict=True)}
    step = {"decoder_input_ids": ids[:, :2], "attention_mask": mask, **cross, **past}
    return {
        ENCODER_MODEL: _part(Read(model), source, [READ]),
        DECODER_MODEL: _part(EncodedStep(model), step, ["logits", *names_of(len(past) // 2, PRESENT)]),
    }


def _decoder(model: PreTrainedModel) -> dict[str, Part]:
    past = _past(tensors_of(cached(model)))
    mask = torch.ones(2, BEFORE + 2, dtype=torch.long)
    mask[1, :2] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, BEFORE:]
    step = {"input_ids": torch.zeros(2, 2, dtype=torch.long), "attention_mask": mask, "position_ids": places}
    step |= {KEPT: torch.arange(2), **past}
    return {MODEL: _part(Step(model), step, ["logits", *names_of(len(past) // 2, PRESENT)])}


def cached(model: PreTrainedModel) -> Cache:
    """Return the cache of a decoder behind one token."""
    ids = torch.zeros(1, 1, dtype=torch.long)
    given = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    cache: Cache = model(input_ids=ids, use_cache=True, **given)["past_key_values"]
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def _past(like: list[torch.Tensor]) -> Batch:
    """Return keys and values of BEFORE tokens, of the same heads and sizes as these (B, H, L, D)."""
    names = names_of(len(like) // 2, PAST)
    return {name: torch.randn(2, one.shape[1], BEFORE, one.shape[3]) for name, one in zip(names, like, strict=True)}


def _part(module: torch.nn.Module, example: Batch, outputs: list[str]) -> Part:
    """Return what becomes a graph; free are the texts, and the tokens: (B, H, L, D), (B, L), (K,)."""
    free = {name: {4: (0, 2), 2: (0, 1), 1: (0,)}[tensor.ndim] for name, tensor in example.items()}
    return Part(module.eval(), example, outputs, free)


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
