"""A model that writes its answer by graphs of another runtime: `generate` calls it as the PyTorch model.

An encoder-decoder has two graphs: one that reads a source, and one step of the decoder. A decoder has the step alone.
Shapes: B texts, L tokens of a source, T tokens of a step, P tokens before it, N layers, H heads, D numbers of a head.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from finetune.data.batches import Arrays
from finetune.models.openvino import DECODER, ENCODER, IR, Opened, open_openvino
from finetune.models.stored.configs import load_config

PAST, PRESENT = "past_key_values.", "present."  # and the layer, and .key or .value, as Optimum names them
CROSS = "cross_key_values."  # the same of a source, for a step of an encoder-decoder's decoder
READ = "encoder_last_hidden_state"  # (B, 2 N, H, L, D): keys and values of a source, for all layers of the decoder
KEPT = "logits_to_keep"  # (K,): the places of a step whose logits are asked for


def names_of(layers: int, prefix: str) -> list[str]:
    """Return the names of the keys and values of all layers, in order."""
    return [f"{prefix}{i}.{what}" for i in range(layers) for what in ("key", "value")]


def cache_of(tensors: list[torch.Tensor]) -> Cache:
    """Return keys and values (B, H, P, D), of one layer after another, as transformers keeps them."""
    layers: list[CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer] = []
    for keys, values in zip(tensors[::2], tensors[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        layers.append(layer)
    return Cache(layers=layers)


def tensors_of(cache: Cache) -> list[torch.Tensor]:
    """Return the keys and values of one layer after another."""
    tensors: list[torch.Tensor] = []
    for layer in cache.layers:
        assert isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None
        tensors += [layer.keys, layer.values]
    return tensors


class Writer(PreTrainedModel, GenerationMixin):
    """A model without weights, whose steps another runtime computes on the CPU."""

    _supports_sdpa = True  # its config may ask for it, as that of the model that was converted

    def __init__(self, config: PreTrainedConfig, encoder: Opened | None, decoder: Opened) -> None:
        super().__init__(deepcopy(config))  # which writes into it
        self.generation_config = GenerationConfig()  # not the family's own: what `generate` is given says all
        self.source_graph, self.step_graph = encoder, decoder  # `generate` would take an `encoder` for a module
        self.layers = sum(name.startswith(PAST) for name in decoder.inputs) // 2
        self.split: tuple[torch.Tensor, list[torch.Tensor]] | None = None  # what was read last, and its parts

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int = 0,
        use_cache: bool = True,
        return_dict: bool = True,
    ) -> ModelOutput:
        """Return the logits (B, T, V) of a step, or of a decoder the last `logits_to_keep`, and past_key_values."""
        past = past_key_values if use_cache and past_key_values and past_key_values.get_seq_length() else None
        if decoder_input_ids is not None:
            read = self._read(input_ids, attention_mask) if encoder_outputs is None else encoder_outputs[0]
            mask = torch.ones(len(read), read.shape[3]) if attention_mask is None else attention_mask
            step = {"decoder_input_ids": decoder_input_ids, "attention_mask": mask.long()}
            step |= dict(zip(names_of(self.layers, CROSS), self._parts(read), strict=True))
            return self._step(step, past, {READ: read})
        assert input_ids is not None
        texts, tokens = input_ids.shape
        before = past.get_seq_length() if past else 0
        mask = torch.ones(texts, before + tokens) if attention_mask is None else attention_mask
        places = torch.arange(before, before + tokens).expand(texts, tokens) if position_ids is None else position_ids
        kept = torch.arange(tokens - logits_to_keep if logits_to_keep else 0, tokens)
        step = {"input_ids": input_ids, "attention_mask": mask.long(), "position_ids": places, KEPT: kept}
        return self._step(step, past, {})

    def _read(self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> torch.Tensor:
        assert self.source_graph is not None and input_ids is not None
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        given = {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}
        return torch.from_numpy(self.source_graph.compute(given)[READ])

    def _parts(self, read: torch.Tensor) -> list[torch.Tensor]:
        """Return the keys and values of what was read, copied once for all the steps that look at them."""
        if self.split is None or self.split[0] is not read:
            self.split = read, [one.contiguous() for one in read.unbind(1)]
        return self.split[1]

    def _step(self, step: dict[str, torch.Tensor], past: Cache | None, read: dict[str, torch.Tensor]) -> ModelOutput:
        """Return the outputs behind `past`; None of it is what `generate` begins with, whatever its kind of cache."""
        names = names_of(self.layers, PAST)
        given: Arrays = {name: tensor.numpy() for name, tensor in step.items()}
        if past is None:
            texts = len(step["attention_mask"])
            given |= {name: np.zeros((texts, *self.step_graph.empty[name]), np.float32) for name in names}
        else:
            given |= {name: tensor.numpy() for name, tensor in zip(names, tensors_of(past), strict=True)}
        found = {name: torch.from_numpy(array) for name, array in self.step_graph.compute(given).items()}
        present = cache_of([found[name] for name in names_of(self.layers, PRESENT)])
        return ModelOutput(logits=found["logits"], past_key_values=present, **read)


def writer_of(config: PreTrainedConfig, graphs: Sequence[Opened]) -> Writer:
    """Return the model of one graph, or of an encoder's and a decoder's."""
    *encoder, decoder = graphs
    return Writer(config, encoder[0] if encoder else None, decoder)


def open_writer(folder: Path, threads: int) -> Writer:
    """Return the OpenVINO model of a folder of graphs and their config.json. Raises: ModelError if it can't be read."""
    config = load_config(folder)
    files = (ENCODER, DECODER) if config.is_encoder_decoder else (IR,)
    return writer_of(config, [open_openvino(folder / name, threads) for name in files])
