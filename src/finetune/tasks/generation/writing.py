"""Answer a batch, for tasks whose encoder-decoder writes its answer.

Shapes: B windows in a batch, T tokens written, V in the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from finetune.data.batches import Batch
from finetune.tasks.answering import forward, with_loss
from finetune.tasks.task import Answer, Objective, Reduced, State

INPUTS = frozenset({"input_ids", "attention_mask", "decoder_input_ids"})
NOTHING = -1  # behind what was written


@dataclass(frozen=True, kw_only=True)
class WritingState(State):
    """The state of a task that writes: how its decoder begins and searches."""

    max_target_length: int  # tokens, what is put around a target among them
    num_beams: int
    decoder_start_token_id: int
    forced_bos_token_id: int | None


def generation_config(model: PreTrainedModel, state: WritingState) -> GenerationConfig:
    """Return how to write: by the state alone, so that no default of a family or of a library plays a part."""
    config = model.config.to_dict()
    return GenerationConfig(
        max_new_tokens=state.max_target_length,
        num_beams=state.num_beams,
        do_sample=False,
        decoder_start_token_id=state.decoder_start_token_id,
        forced_bos_token_id=state.forced_bos_token_id,
        pad_token_id=config.get("pad_token_id"),
        eos_token_id=config.get("eos_token_id"),
        bos_token_id=config.get("bos_token_id"),
    )


def configure(model: PreTrainedModel, state: WritingState) -> None:
    """Let `model.generate` write by the state: what a config leaves out, it takes from the model's own."""
    model.generation_config = generation_config(model, state)


def by_generation(objective: Objective) -> Answer[Any]:
    """Return the hook of a task whose model writes: tokens (B, T), NOTHING behind them, the score (B,) and margin (B,).

    The score is the mean log-probability of the tokens written; the margin is by how much, at the least certain of
    them, its logit beats the next one's.
    """

    def answer(model: PreTrainedModel, batch: Batch, state: WritingState) -> Reduced:
        mask = batch["attention_mask"]
        first = torch.full_like(mask[:, :1], state.decoder_start_token_id)
        # The whole model in one pass: what is set for its forward, as autocast is, holds for the encoder too.
        outputs = forward(model, {"decoder_input_ids": first, **batch}, INPUTS)
        read = outputs["encoder_last_hidden_state"]
        config = generation_config(model, state)
        write: Any = model.generate  # it repeats what it is given for each beam, in place
        written = write(encoder_outputs=BaseModelOutput(read), attention_mask=mask, generation_config=config)
        tokens = until_the_end(written[:, 1:], config.eos_token_id)
        logits = model(encoder_outputs=BaseModelOutput(read), attention_mask=mask, decoder_input_ids=written[:, :-1])[
            "logits"
        ]
        reduced = {"row": batch["row"], "tokens": tokens, **judged(logits.float(), tokens, state)}
        return with_loss(reduced, outputs, batch, objective)

    return answer


def until_the_end(tokens: torch.Tensor, ends: int | list[int]) -> torch.Tensor:
    """Return tokens (B, T) with NOTHING behind the first that ends a text."""
    ending = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
    behind = ending.cumsum(1) - ending.long() > 0
    return tokens.masked_fill(behind, NOTHING)


def judged(logits: torch.Tensor, tokens: torch.Tensor, state: WritingState) -> Reduced:
    """Return score and margin (B,) of tokens (B, T) by the logits (B, T, V) that they were chosen from."""
    chosen = tokens != NOTHING
    if state.forced_bos_token_id is not None:  # it was not chosen
        chosen[:, 0] = False
    place = tokens.clamp(min=0).unsqueeze(2)
    own = logits.gather(2, place).squeeze(2)
    logarithms = own - logits.logsumexp(2)
    others = logits.scatter(2, place, -torch.inf).amax(2)
    count = chosen.sum(1).clamp(min=1)
    return {
        "score": (logarithms * chosen).sum(1) / count,
        "margin": (own - others).masked_fill(~chosen, torch.inf).amin(1),
    }


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
