"""Answer a batch, for tasks whose model writes its answer: an encoder-decoder, or a decoder that goes on with a prompt.

Shapes: B windows in a batch, L tokens of a prompt, T tokens written, V in the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from finetune.data.batches import Batch
from finetune.distributed.process_group import in_step
from finetune.tasks.answering import forward, with_loss
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
        min_new_tokens=_first(state) + 1 if never_empty else None,
        num_beams=state.num_beams,
        do_sample=False,
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


def by_generation(objective: Objective, never_empty: bool = False) -> Answer[Any]:
    """Return the hook of a task whose model writes: tokens (B, T), NOTHING behind them, and what `judged` says of them.

    With `never_empty`, at least one token is written before the end.
    """

    def answer(model: PreTrainedModel, batch: Batch, state: WritingState) -> Reduced:
        config = generation_config(model, state, never_empty)
        if state.decoder_start_token_id is None:
            outputs = forward(model, batch, INPUTS) if objective.labels <= batch.keys() else ModelOutput()
            written, logits = _go_on(model, batch, config)
        else:
            first = torch.full_like(batch["input_ids"][:, :1], state.decoder_start_token_id)
            # The whole model in one pass: what is set for its forward, as autocast is, holds for the encoder too.
            outputs = forward(model, {"decoder_input_ids": first, **batch}, INPUTS)
            written, logits = _write(model, outputs["encoder_last_hidden_state"], batch, config)
        tokens = until_the_end(written, config.eos_token_id)
        judgement = judged(logits.float(), tokens, config.eos_token_id, _first(state), never_empty)
        return with_loss({"row": batch["row"], "tokens": tokens, **judgement}, outputs, batch, objective)

    return answer


def _generated(
    model: PreTrainedModel, config: GenerationConfig, **inputs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what the model writes, and with one beam the logits (B, T, V) that each token was chosen by.

    With several, the logits of all of them would have to be kept. A process whose texts have ended goes on for the
    others where they depend on it.
    """
    generate: Any = model.generate
    found = generate(
        **inputs,
        generation_config=config,
        synced_gpus=in_step(model),
        return_dict_in_generate=True,
        output_logits=config.num_beams == 1,
    )
    return found.sequences, torch.stack(found.logits, 1) if config.num_beams == 1 else None


def _write(
    model: PreTrainedModel, read: torch.Tensor, batch: Batch, config: GenerationConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens (B, T) that an encoder-decoder writes, and the logits (B, T, V) that each was chosen by."""
    mask = batch["attention_mask"]
    # It repeats in place what it is given for beams, hence an output of its own.
    written, logits = _generated(model, config, encoder_outputs=BaseModelOutput(read), attention_mask=mask)
    if logits is None:
        again = model(encoder_outputs=BaseModelOutput(read), attention_mask=mask, decoder_input_ids=written[:, :-1])
        logits = again["logits"]
    return written[:, 1:], logits


def _go_on(model: PreTrainedModel, batch: Batch, config: GenerationConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens (B, T) that a decoder writes behind its prompts, and the logits (B, T, V) as above."""
    ids, mask = on_the_left(batch["input_ids"], batch["prompt_tokens"], config.pad_token_id)
    written, logits = _generated(model, config, input_ids=ids, attention_mask=mask)
    count = written.shape[1] - ids.shape[1]
    if logits is None:
        seen = torch.cat([mask, mask.new_ones(len(mask), count)], 1)
        places = (seen.cumsum(1) - 1).clamp(min=0)
        again = model(input_ids=written, attention_mask=seen, position_ids=places, logits_to_keep=count + 1)
        logits = again["logits"][:, :-1]
    return written[:, ids.shape[1] :], logits


def on_the_left(ids: torch.Tensor, lengths: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first `lengths` (B,) of ids (B, L), moved to the right end and padded on the left, and their mask."""
    width = int(lengths.max())
    place = torch.arange(width, device=ids.device) - (width - lengths[:, None])  # (B, L), negative where padded
    mask = (place >= 0).long()
    return ids.gather(1, place.clamp(min=0)).masked_fill(mask == 0, pad), mask


def until_the_end(tokens: torch.Tensor, ends: int | list[int]) -> torch.Tensor:
    """Return tokens (B, T) with NOTHING behind the first that ends a text."""
    ending = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
    behind = ending.cumsum(1) - ending.long() > 0
    return tokens.masked_fill(behind, NOTHING)


def judged(logits: torch.Tensor, tokens: torch.Tensor, ends: int | list[int], first: int, never_empty: bool) -> Reduced:
    """Return what the logits (B, T, V) say of the tokens (B, T) that were chosen by them, from place `first` on.

    Each is (B,): log_probability of all tokens together and score, its mean; empty, the log-probability of ending at
    once; margin, by how much the logit of the least certain token beats the next one's.
    """
    chosen = tokens != NOTHING
    chosen[:, :first] = False
    place = tokens.clamp(min=0).unsqueeze(2)
    own = logits.gather(2, place).squeeze(2)
    total = logits.logsumexp(2)
    ending = torch.as_tensor(ends, device=logits.device).flatten()
    empty = logits[:, first, ending].logsumexp(1) - total[:, first]
    others = logits.scatter(2, place, -torch.inf)
    if never_empty:
        others[:, first, ending] = -torch.inf
    log_probability = ((own - total) * chosen).sum(1)
    return {
        "log_probability": log_probability,
        "score": log_probability / chosen.sum(1).clamp(min=1),
        "empty": empty,
        "margin": (own - others.amax(2)).masked_fill(~chosen, torch.inf).amin(1),
    }


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
    tokens: Sequence[Any] = reduced["tokens"]
    decoded = tokenizer.batch_decode([one.tolist() for one in tokens], skip_special_tokens=True)
    return [text.strip() for text in decoded]
