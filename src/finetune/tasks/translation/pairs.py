"""Encode pairs of a source and a target: one window for each row, since a translation needs the whole of its source."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from finetune.data.batches import Columns
from finetune.data.table import Row
from finetune.params.datapreprocess import TranslationPreprocessParams
from finetune.params.finetune import TranslationParams
from finetune.params.provenance import Derived
from finetune.tasks.generation import framing
from finetune.tasks.generation.objective import IGNORED, objective
from finetune.tasks.generation.writing import WritingState
from finetune.tasks.task import Imported, Lost, Objective
from finetune.tasks.windowing import window_length

_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,31});")


@dataclass(frozen=True, kw_only=True)
class State(WritingState):
    """The state that encoding and decoding need."""

    source_lang: str
    target_lang: str
    prefix: str  # before each source


def fit(params: TranslationPreprocessParams, _splits: Mapping[str, list[Row]], model: Imported) -> State:
    """Return the state of a run. Raises: ParameterError for a language that the model doesn't know, ModelError."""
    source, target, tokenizer = params.source_lang, params.target_lang, model.tokenizer
    framing.refuse_unknown(tokenizer, {"source_lang": source, "target_lang": target})
    framing.set_languages(tokenizer, source, target)
    begins = framing.find_framing(model.config, tokenizer)
    own = framing.own_prefix(model.config, tokenizer, source, target)
    return State(
        max_seq_length=window_length(params.max_seq_length, model.longest_window),
        pad_to_max_length=params.pad_to_max_length,
        max_target_length=window_length(params.max_target_length, model.longest_window),
        num_beams=params.num_beams,
        decoder_start_token_id=begins.start,
        forced_bos_token_id=begins.forced,
        source_lang=source,
        target_lang=target,
        prefix=own if params.source_prefix is None else params.source_prefix,
    )


def derived(params: TranslationPreprocessParams, state: State, splits: Mapping[str, list[Row]]) -> list[str]:
    """Return lines on what `fit` found, and on what is strange in the pairs."""
    lines = []
    if params.max_target_length != state.max_target_length:
        asked = "" if params.max_target_length == -1 else f" instead of {params.max_target_length}"
        lines.append(f"max_target_length: {state.max_target_length}{asked}, the model's maximum")
    if params.source_prefix is None and state.prefix:
        lines.append(f"source_prefix: {state.prefix!r}, as the model was pretrained")
    return lines + [line for name, rows in splits.items() for line in _remarks(name, rows, splits.get("train", []))]


def _remarks(name: str, rows: Sequence[Row], train: Sequence[Row]) -> list[str]:
    """Return lines on pairs that stand in train too, on sources left as they were, and on what HTML has left."""
    known = {(row["source"], row["target"]) for row in train} if name != "train" else set()
    pairs = [(row["source"], row["target"] or "") for row in rows]
    counts = {
        "stand in train too: what is measured on them is not what the model does with new ones": sum(
            pair in known for pair in pairs
        ),
        "have the source itself as their target": sum(source == target for source, target in pairs),
        "hold HTML entities, as &amp;, which are taken as they are": sum(
            _has_entity(source) or _has_entity(target) for source, target in pairs
        ),
    }
    return [f"{name}: {count:,} of {len(rows):,} pairs {what}" for what, count in counts.items() if count]


def _has_entity(text: str) -> bool:
    return "&" in text and any(html.unescape(found) != found for found in _ENTITY.findall(text))


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, state: State) -> Columns:
    """Return a window for each row.

    Columns: input_ids and attention_mask, with the prefix, cut off at max_seq_length; row (index into `rows`);
    source_tokens, before that; target_ids, cut off at max_target_length, empty without a target; target_tokens.
    """
    framing.set_languages(tokenizer, state.source_lang, state.target_lang)
    sources = [state.prefix + row["source"] for row in rows]
    ids: list[list[int]] = tokenizer(sources)["input_ids"] if rows else []
    lengths = [len(one) for one in ids]
    for i, length in enumerate(lengths):
        if length > state.max_seq_length:
            ids[i] = tokenizer(sources[i], truncation=True, max_length=state.max_seq_length)["input_ids"]
    masks = [[1] * len(one) for one in ids]
    if state.pad_to_max_length:
        fill = [state.max_seq_length - len(one) for one in ids]
        ids = [[*one, *[tokenizer.pad_token_id] * more] for one, more in zip(ids, fill, strict=True)]
        masks = [[*one, *[0] * more] for one, more in zip(masks, fill, strict=True)]
    targets = _targets(rows, tokenizer, state)
    return {
        "input_ids": ids,
        "attention_mask": masks,
        "row": list(range(len(rows))),
        "source_tokens": lengths,
        "target_ids": [kept for kept, _ in targets],
        "target_tokens": [length for _, length in targets],
    }


def _targets(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, state: State) -> list[tuple[list[int], int]]:
    """Return the tokens of each target, cut off, and how many there are without that; none without a target."""
    there = [i for i, row in enumerate(rows) if row["target"] is not None]
    found: list[tuple[list[int], int]] = [([], 0)] * len(rows)
    for i, ids in zip(there, framing.target_ids(tokenizer, [rows[i]["target"] for i in there]), strict=True):
        kept = ids
        if len(ids) > state.max_target_length:
            cut: Any = tokenizer(text_target=rows[i]["target"], truncation=True, max_length=state.max_target_length)
            kept = cut["input_ids"]
        found[i] = (kept, len(ids))
    return found


def label(_rows: Sequence[Row], windows: Columns, state: State) -> tuple[Columns, dict[int, Lost]]:
    """Return labels and the decoder's input, which is the same one place to the right, behind the token to start with.

    Also return the rows that are cut off: half a pair teaches to leave out the other half.
    """
    targets = windows.get("target_ids", [])
    inputs = [[state.decoder_start_token_id, *ids[:-1]] for ids in targets]
    return {"labels": targets, "decoder_input_ids": inputs}, _cut(windows, state)


def unanswerable(_rows: Sequence[Row], windows: Columns, state: State) -> dict[int, str]:
    """Return the rows whose translation can't be that of the whole source, or not as long as their target."""
    return {row: lost.reason for row, lost in _cut(windows, state).items()}


def _cut(windows: Columns, state: State) -> dict[int, Lost]:
    """Return the rows of which a part is cut off."""
    limits = (
        ("target", "max_target_length", state.max_target_length),
        ("source", "max_seq_length", state.max_seq_length),
    )
    found: dict[int, Lost] = {}
    for side, parameter, limit in limits:
        lost = Lost(f"its {side} has more than {limit} tokens ({parameter})", f"--{parameter} -1, or split long texts")
        rows = zip(windows.get("row", []), windows.get(f"{side}_tokens", []), strict=True)
        found |= {row: lost for row, length in rows if length > limit}
    return found


def gold_lengths(windows: Columns) -> list[int]:
    """Return the tokens of each target."""
    return [length for length in windows.get("target_tokens", []) if length]


def beyond(lengths: Sequence[int], state: State) -> list[str]:
    """Return a line on the targets that no translation can equal."""
    longer = sum(length > state.max_target_length for length in lengths)
    if not longer:
        return []
    share = f"{longer / len(lengths):.1%} of the targets"
    return [
        f"{share} have more than {state.max_target_length} tokens, which no translation will have (max_target_length)"
    ]


def padding(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the values that fill columns up; what isn't listed is padded with 0 (attention_mask)."""
    pad = tokenizer.pad_token_id
    return {"input_ids": pad, "decoder_input_ids": pad, "target_ids": pad, "labels": IGNORED}


def adopt(state: State, _config: PreTrainedConfig) -> State:
    """Return the state: a config knows nothing better of it than what `fit` has read there."""
    return state


def weigh(params: TranslationParams, _state: State, _windows: object) -> tuple[Objective, list[Derived]]:
    """Return the objective of training."""
    return objective(params.label_smoothing_factor), []
