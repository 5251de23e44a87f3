"""Encode pairs of a source and a target: one window for each row, since a translation needs the whole of its source."""

import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from finetune.core.errors import Fault, ParameterError
from finetune.core.types import Json
from finetune.data.batches import Columns
from finetune.data.table import Row
from finetune.data.values import hashes
from finetune.params.datapreprocess import TranslationPreprocessParams
from finetune.tasks.generation import framing, targets
from finetune.tasks.generation.writing import WritingState
from finetune.tasks.task import Imported, Lost
from finetune.tasks.windowing import window_length

_MISREAD = re.compile("[ÃÂâ][\u0080-\u00bf\u0152-\u2122]")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,31});")


@dataclass(frozen=True, kw_only=True)
class State(WritingState):
    """The state that encoding and decoding need."""

    source_lang: str
    target_lang: str
    prefix: str  # before each source


def fit(params: TranslationPreprocessParams, _splits: Mapping[str, Sequence[Row]], model: Imported) -> State:
    """Return the state of a run. Raises: ParameterError for a language that the model doesn't know, ModelError."""
    source, target, tokenizer = params.source_lang, params.target_lang, model.tokenizer
    framing.refuse_unknown(tokenizer, {"source_lang": source, "target_lang": target})
    with framing.told(tokenizer, source, target):
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


def asked(state: State, given: Json, model: Imported) -> State:
    """Return the state with what a request gives: with other languages, the decoder begins otherwise.

    Raises: ParameterError for a pair of languages that the model doesn't know.
    """
    found = replace(state, **given)
    source, target = found.source_lang, found.target_lang
    if (source, target) == (state.source_lang, state.target_lang):
        return found
    config, tokenizer = model.config, model.tokenizer
    if not framing.known_languages(tokenizer):
        what = f"the model translates from {state.source_lang} to {state.target_lang}, not from {source} to {target}"
        fix = f"--source_lang {state.source_lang} --target_lang {state.target_lang}"
        fix += "; name the columns of a file by --source_key and --target_key"
        raise ParameterError(Fault(what, why="its tokenizer has no codes of languages", fix=fix))
    framing.refuse_unknown(tokenizer, {"source_lang": source, "target_lang": target})
    with framing.told(tokenizer, source, target):
        begins = framing.find_framing(config, tokenizer)
    before, own = (framing.own_prefix(config, tokenizer, one.source_lang, one.target_lang) for one in (state, found))
    return replace(
        found,
        decoder_start_token_id=begins.start,
        forced_bos_token_id=begins.forced,
        prefix=own if state.prefix == before else state.prefix,
    )


def derived(params: TranslationPreprocessParams, state: State, splits: Mapping[str, Sequence[Row]]) -> list[str]:
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
    counts: Counter[str] = Counter()
    if name != "train":
        again = "stand in train too: what is measured on them is not what the model does with new ones"
        counts[again] = int(np.isin(hashes(map(_texts, rows)), hashes(map(_texts, train))).sum())
    for source, target in map(_texts, rows):
        counts["have the source itself as their target"] += source == target
        counts["hold HTML entities, as &amp;, which are taken as they are"] += any(map(_has_entity, (source, target)))
        misread = any(map(_is_misread, (source, target)))
        counts["seem to be UTF-8 that was read as Windows text, as Ã© for é, and are taken as they are"] += misread
    return [f"{name}: {count:,} of {len(rows):,} pairs {what}" for what, count in counts.items() if count]


def _texts(row: Row) -> tuple[str, str]:
    return row["source"], row["target"] or ""


def _has_entity(text: str) -> bool:
    return "&" in text and any(html.unescape(found) != found for found in _ENTITY.findall(text))


def _is_misread(text: str) -> bool:
    if not _MISREAD.search(text):
        return False
    try:
        return text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, state: State) -> Columns:
    """Return a window for each row.

    Columns: input_ids and attention_mask, with the prefix, cut off at max_seq_length; row (index into `rows`);
    source_tokens, before that; target_ids, cut off at max_target_length, empty without a target; target_tokens.
    """
    with framing.told(tokenizer, state.source_lang, state.target_lang):
        return _encoded(rows, tokenizer, state)


def _encoded(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, state: State) -> Columns:
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
    columns: Columns = {
        "input_ids": ids,
        "attention_mask": masks,
        "row": list(range(len(rows))),
        "source_tokens": lengths,
    }
    return columns | targets.encode([row["target"] for row in rows], tokenizer, state)


def label(_rows: Sequence[Row], windows: Columns, state: State) -> tuple[Columns, dict[int, Lost]]:
    """Return labels, and the rows that are cut off: half a pair teaches to leave out the other half."""
    return targets.label(windows, state), _cut_off(windows, state)


def unanswerable(_rows: Sequence[Row], windows: Columns, state: State) -> dict[int, str]:
    """Return the rows whose translation can't be that of the whole source, or not as long as their target."""
    return {row: lost.reason for row, lost in _cut_off(windows, state).items()}


def _cut_off(windows: Columns, state: State) -> dict[int, Lost]:
    return {
        **targets.cut_off(windows, "target", "max_target_length", state.max_target_length),
        **targets.cut_off(windows, "source", "max_seq_length", state.max_seq_length),
    }


def beyond(lengths: Sequence[int], state: State) -> list[str]:
    """Return a line on the targets that no translation can equal."""
    return targets.beyond(lengths, state.max_target_length, "targets", "max_target_length")


def adopt(state: State, _config: PreTrainedConfig) -> State:
    """Return the state: a config knows nothing better of it than what `fit` has read there."""
    return state
