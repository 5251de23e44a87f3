"""Answer a batch, for tasks whose model writes its answer: an encoder-decoder, or a decoder that goes on with a prompt.

Shapes: B windows in a batch, L tokens of a prompt, T tokens written, V in the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from finetune.data.batches import Batch
from finetune.distributed.process_group import in_step
from finetune.tasks.answering import forward, with_loss
from finetune.tasks.generation.judging import Greedy, Judgement
from finetune.tasks.task import Answer, Objective, Reduced, State

INPUTS = frozenset({"input_ids", "attention_mask", "decoder_input_ids"})
NOTHING = -1  # behind what was written


@dataclass(frozen=True, kw_only=True)
class WritingState(State):
    """The state of a task that writes: how its decoder begins and searches."""

    max_target_length: int  # tokens, what is put around a target among them
    num_beams: int
    decoder_start_token_id: int | None  # None for a decoder, which goes on with its prompt
    forced_bos_token_id: int | None


def generation_config(model: PreTrainedModel, state: WritingState, never_empty: bool = False) -> GenerationConfig:
    """Return how to write: by the state alone, so that no default of a family or of a library plays a part."""
    config = model.config.to_dict()
    ends = config.get("eos_token_id")
    pad = config.get("pad_token_id")
    if pad is None:  # masked, so that any token will do
        pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(
        max_new_tokens=state.max_target_length,
        # With one beam the Judgement sees to it, which has to know the logits of an end.
        min_new_tokens=_first(state) + 1 if never_empty and state.num_beams > 1 else None,
        num_beams=state.num_beams,
        do_sample=False,
        use_cache=True,  # the config of a model that was trained says no
        decoder_start_token_id=state.decoder_start_token_id,
        forced_bos_token_id=state.forced_bos_token_id,
        pad_token_id=pad,
        eos_token_id=ends,
        bos_token_id=config.get("bos_token_id"),
    )


def configure(model: PreTrainedModel, state: WritingState) -> None:
    """Let `model.generate` write by the state: what a config leaves out, it takes from the model's own."""
    model.generation_config = generation_config(model, state)


def _first(state: WritingState) -> int:
    """Return the place of the first token that is chosen."""
    return 0 if state.forced_bos_token_id is None else 1


def by_generation(objective: Objective, never_empty: bool = False) -> Answer[WritingState]:
    """Return the hook of a task whose model writes: tokens (B, T), NOTHING behind them, and what a Judgement says.

    With `never_empty`, at least one token is written before the end.
    """

    def answer(model: PreTrainedModel, batch: Batch, state: WritingState) -> Reduced:
        config = generation_config(model, state, never_empty)
        ids = batch["input_ids"]
        ends = torch.as_tensor(config.eos_token_id, device=ids.device).flatten()
        judgement = Judgement(len(ids), ends, _first(state), never_empty)
        if state.decoder_start_token_id is None:
            outputs = forward(model, batch, INPUTS) if objective.labels <= batch.keys() else ModelOutput()
            written = _go_on(model, batch, config, judgement)
        else:
            first = torch.full_like(ids[:, :1], state.decoder_start_token_id)
            # The whole model in one pass: what is set for its forward, as autocast is, holds for the encoder too.
            outputs = forward(model, {"decoder_input_ids": first, **batch}, INPUTS)
            written = _write(model, outputs["encoder_last_hidden_state"], batch, config, judgement)
        tokens = until_the_end(written, ends)
        return with_loss({"row": batch["row"], "tokens": tokens, **judgement.reduced()}, outputs, batch, objective)

    return answer


def _generated(
    model: PreTrainedModel, config: GenerationConfig, judgement: Judgement, **inputs: object
) -> torch.Tensor:
    """Return what the model writes, and with one beam judge it on the way.

    A process whose texts have ended goes on for the others where they depend on it.
    """
    generate: Any = model.generate
    if config.num_beams == 1:
        inputs["logits_processor"] = LogitsProcessorList([Greedy(judgement)])
    written: torch.Tensor = generate(**inputs, generation_config=config, synced_gpus=in_step(model))
    return written


def _judge_again(written: torch.Tensor, logits: torch.Tensor, judgement: Judgement) -> None:
    """Judge tokens (B, T) by the logits (B, T, V) of one more pass: during a search, those of all beams are mixed."""
    for place in range(written.shape[1]):
        judgement.add(logits[:, place].float(), written[:, place])


def _write(
    model: PreTrainedModel, read: torch.Tensor, batch: Batch, config: GenerationConfig, judgement: Judgement
) -> torch.Tensor:
    """Return the tokens (B, T) that an encoder-decoder writes."""
    mask = batch["attention_mask"]
    # It repeats in place what it is given for beams, hence an output of its own.
    written = _generated(model, config, judgement, encoder_outputs=BaseModelOutput(read), attention_mask=mask)
    if config.num_beams > 1:
        again = model(encoder_outputs=BaseModelOutput(read), attention_mask=mask, decoder_input_ids=written[:, :-1])
        _judge_again(written[:, 1:], again["logits"], judgement)
    return written[:, 1:]


def _go_on(model: PreTrainedModel, batch: Batch, config: GenerationConfig, judgement: Judgement) -> torch.Tensor:
    """Return the tokens (B, T) that a decoder writes behind its prompts."""
    ids, mask = on_the_left(batch["input_ids"], batch["prompt_tokens"], config.pad_token_id)
    written = _generated(model, config, judgement, input_ids=ids, attention_mask=mask)
    new = written[:, ids.shape[1] :]
    if config.num_beams > 1:
        count = new.shape[1]
        seen = torch.cat([mask, mask.new_ones(len(mask), count)], 1)
        places = (seen.cumsum(1) - 1).clamp(min=0)
        again = model(input_ids=written, attention_mask=seen, position_ids=places, logits_to_keep=count + 1)
        _judge_again(new, again["logits"][:, :-1], judgement)
    return new


def on_the_left(ids: torch.Tensor, lengths: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first `lengths` (B,) of ids (B, L), moved to the right end and padded on the left, and their mask."""
    width = int(lengths.max())
    place = torch.arange(width, device=ids.device) - (width - lengths[:, None])  # (B, L), negative where padded
    mask = (place >= 0).long()
    return ids.gather(1, place.clamp(min=0)).masked_fill(mask == 0, pad), mask


def until_the_end(tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return tokens (B, T) with NOTHING behind the first of the `ends` (E,)."""
    ending = torch.isin(tokens, ends)
    behind = ending.cumsum(1) - ending.long() > 0
    return tokens.masked_fill(behind, NOTHING)


def count_written(reduced: Reduced) -> int:
    """Return how many tokens were written."""
    return int((reduced["tokens"] != NOTHING).sum())


def compact(reduced: Reduced) -> Reduced:
    """Return the same with an array of its own for the tokens of each window."""
    tokens = np.empty(len(reduced["tokens"]), dtype=object)
    for i, row in enumerate(reduced["tokens"]):
        tokens[i] = row[row != NOTHING]
    return {**reduced, "tokens": tokens}


def texts(reduced: Reduced, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the text of each window."""
    tokens: Sequence[np.ndarray] = reduced["tokens"]
    decoded = tokenizer.batch_decode([one.tolist() for one in tokens], skip_special_tokens=True)
    return [text.strip() for text in decoded]
