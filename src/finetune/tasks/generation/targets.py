"""Encode what is to be written, and label windows with it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from finetune.data.batches import Columns
from finetune.tasks.generation import framing
from finetune.tasks.generation.objective import IGNORED
from finetune.tasks.generation.writing import WritingState
from finetune.tasks.task import Lost

COLUMNS = frozenset({"target_ids", "target_tokens"})


def encode(targets: Sequence[str | None], tokenizer: PreTrainedTokenizerFast, state: WritingState) -> Columns:
    """Return columns of targets: target_ids, cut off at max_target_length, and target_tokens, how many there are
    without that. A target of None has no tokens."""
    there = [i for i, text in enumerate(targets) if text is not None]
    found: list[list[int]] = [[]] * len(targets)
    lengths = [0] * len(targets)
    for i, ids in zip(there, framing.target_ids(tokenizer, [str(targets[i]) for i in there]), strict=True):
        found[i], lengths[i] = ids, len(ids)
        if len(ids) > state.max_target_length:
            cut = tokenizer(text_target=targets[i], truncation=True, max_length=state.max_target_length)
            found[i] = cut["input_ids"]
    return {"target_ids": found, "target_tokens": lengths}


def label(windows: Columns, state: WritingState) -> Columns:
    """Return labels and the decoder's input: the same one place to the right, behind the token to start with."""
    targets = windows.get("target_ids", [])
    inputs = [[state.decoder_start_token_id, *ids[:-1]] for ids in targets]
    return {"labels": targets, "decoder_input_ids": inputs}


def cut_off(windows: Columns, side: str, parameter: str, limit: int) -> dict[int, Lost]:
    """Return the rows whose source or target, as `side` says, has more tokens than the parameter allows."""
    fix = f"split long texts, or --{parameter} -1 if the model's maximum is more"
    lost = Lost(f"its {side} has more than {limit} tokens ({parameter})", fix)
    rows = zip(windows.get("row", []), windows.get(f"{side}_tokens", []), strict=True)
    return {row: lost for row, length in rows if length > limit}


def lengths(windows: Columns) -> list[int]:
    """Return the tokens of each target."""
    return [length for length in windows.get("target_tokens", []) if length]


def beyond(lengths: Sequence[int], limit: int, what: str, parameter: str) -> list[str]:
    """Return a line on the targets, of these tokens, that nothing that is written can equal."""
    longer = sum(length > limit for length in lengths)
    if not longer:
        return []
    share = f"{longer / len(lengths):.1%} of the {what}"
    return [f"{share} have more than {limit} tokens, and can't be written whole ({parameter})"]


def padding(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the values that fill columns up; what isn't listed is padded with 0 (attention_mask)."""
    pad = tokenizer.pad_token_id
    return {"input_ids": pad, "decoder_input_ids": pad, "target_ids": pad, "labels": IGNORED}
