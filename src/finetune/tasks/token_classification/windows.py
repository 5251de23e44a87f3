"""Make windows over the words of rows, and the labels of windows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from finetune.core.console import say, some
from finetune.core.errors import DataError, Fault, shortened
from finetune.core.types import Json
from finetune.data.batches import Columns
from finetune.data.table import Row
from finetune.params.datapreprocess import TokenClassificationPreprocessParams
from finetune.tasks import task
from finetune.tasks.task import Lost, Rows
from finetune.tasks.token_classification import classes
from finetune.tasks.token_classification.schemes import LETTERS, OUTSIDE, STRANGE_WORDS, detect, possible, strangers
from finetune.tasks.tokenizers import before_words
from finetune.tasks.windowing import fitting_stride, stride_lines, window_length

NO_WORD = -1  # of tokens that stand for no word in their window
IGNORED = -100  # label of such tokens, and of words that aren't annotated


@dataclass(frozen=True, kw_only=True)
class State(task.State):
    """The state that encoding and decoding need."""

    doc_stride: int
    labels: list[str]  # the class names; a label id is a place in it
    scheme: str  # how tags mark entities, "" if they don't: see schemes.py
    wordless: str  # tag of a word that gives no token
    strangers: list[str] = field(default_factory=list)  # tags of the data that mean nothing in the scheme, no classes

    def __post_init__(self) -> None:
        """Raises: ValueError if there is no such scheme, or a class twice."""
        super().__post_init__()
        if self.scheme and self.scheme not in LETTERS:
            raise ValueError(f"scheme is {shortened(self.scheme, 80)!r}")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels has a class twice")


def fit(
    params: TokenClassificationPreprocessParams,
    splits: Mapping[str, Rows],
    model_length: int,
    tokenizer: PreTrainedTokenizerFast,
) -> State:
    """Return the state of a run; classes are the tags of all splits, sorted, as numbers where all are numbers.

    Raises: DataError if it can't be told which tag words outside of entities have.
    """
    length = window_length(params.max_seq_length, model_length)
    tagged = classes.tagged(splits)
    classes.refuse_other_outside(splits)
    found = detect(tagged)
    if found.name:
        classes.refuse_no_outside(splits)
    lost = found.strangers if found.name else []
    counts = Counter(tag for tags in tagged for tag in tags if tag is not None and tag not in lost)
    return State(
        max_seq_length=length,
        doc_stride=fitting_stride(params.doc_stride, length - tokenizer.num_special_tokens_to_add(pair=False)),
        pad_to_max_length=params.pad_to_max_length,
        labels=sorted(counts, key=int) if all(map(_is_number, counts)) else sorted(counts),
        scheme=found.name,
        wordless=OUTSIDE if OUTSIDE in counts or not counts else counts.most_common(1)[0][0],
        strangers=lost,
    )


def _is_number(tag: str) -> bool:
    return tag.isdecimal() and len(tag) <= 18


def derived(params: TokenClassificationPreprocessParams, state: State, splits: Mapping[str, Rows]) -> list[str]:
    """Return lines on what `fit` found or changed."""
    lines = stride_lines(params.doc_stride, state.doc_stride, state.max_seq_length)
    return lines + classes.described(splits, state.labels)


def head_config(state: State | None) -> Json:
    """Return the class names as config.json has them; a model that is only imported keeps its own."""
    if state is None:
        return {}
    return {"id2label": dict(enumerate(state.labels)), "label2id": {name: i for i, name in enumerate(state.labels)}}


def adopt(state: State, config: PreTrainedConfig) -> State:
    """Return the state with the classes of a model from elsewhere, unless its config has but LABEL_0, LABEL_1 …"""
    named: dict[Any, str] = config.id2label or {}
    names = [named.get(i, f"LABEL_{i}") for i in range(config.num_labels or 0)]
    if state.labels and names == [f"LABEL_{i}" for i in range(len(names))]:
        return state
    wordless = next(tag for tag in (OUTSIDE, state.wordless, names[0]) if tag in names)
    return replace(state, labels=names, scheme=next(iter(possible(names)), ""), wordless=wordless)


def gold(row: Row, state: State) -> list[str | None]:
    """Return the row's tags, None for each word that isn't annotated: by no tag, or by one that means nothing."""
    unknown = {*state.strangers, *strangers({*row["tags"]} - {None}, state.scheme)}
    return [None if tag in unknown else tag for tag in row["tags"]]


def refuse(rows: Sequence[Row], state: State) -> None:
    """Raise DataError if gold tags can't be compared with the model's; print what is left out, if it is little."""
    if not state.scheme:
        return
    splits = {"": rows}
    classes.refuse_other_outside(splits)
    words = Counter(tag for tags in classes.tagged(splits) for tag in tags if tag not in (None, OUTSIDE))
    unknown = strangers(filter(None, words), state.scheme)
    if sum(words[tag] for tag in unknown if tag not in state.strangers) > STRANGE_WORDS * words.total():
        what = f"gold tags that mean nothing in {state.scheme}: {some(unknown)}"
        fix = "give rows tagged as those the model was trained on, or another --tag_key"
        raise DataError(Fault(what, why=f"the model's classes are {some(state.labels)}", fix=fix))
    for line in classes.left_out(splits, sorted({*unknown, *state.strangers}), state.scheme, state.labels):
        say(line)


def lacking(rows: Sequence[Row], state: State) -> dict[str, int]:
    """Return the gold tags that are no class of the model, and how many words have each."""
    counts = Counter(tag for row in rows if row["tags"] for tag in gold(row, state) if tag is not None)
    return {tag: counts[tag] for tag in sorted(counts.keys() - set(state.labels))}


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, state: State) -> Columns:
    """Return windows of words.

    Columns: the tokenizer's own; row (index into `rows`); word, for the first token of each word the index of the word,
    in the one window where it has most context; NO_WORD for all other tokens. Windows without any word are left out.
    """
    if state.max_seq_length <= tokenizer.num_special_tokens_to_add(pair=False) + state.doc_stride:
        return {}
    before = before_words(tokenizer)
    encoded = tokenizer(
        [[before + token if token else "" for token in row["tokens"]] for row in rows],
        is_split_into_words=True,
        truncation=True,
        max_length=state.max_seq_length,
        stride=state.doc_stride,
        padding="max_length" if state.pad_to_max_length else False,
        return_overflowing_tokens=True,
    )
    owner = np.asarray(encoded["overflow_to_sample_mapping"])
    ids = [np.array([NO_WORD if w is None else w for w in e.word_ids], dtype=np.int32) for e in encoded.encodings]
    words: list[np.ndarray] = []
    for group in np.split(np.arange(len(owner)), np.flatnonzero(np.diff(owner)) + 1) if len(owner) else []:
        words += _predicted([ids[window] for window in group], state.doc_stride)
    chosen = [i for i, word in enumerate(words) if (word != NO_WORD).any()]
    columns: Columns = {
        name: [encoded[name][i] for i in chosen] for name in tokenizer.model_input_names if name in encoded
    }
    columns["row"] = [int(owner[i]) for i in chosen]
    columns["word"] = [words[i] for i in chosen]
    return columns


def _predicted(windows: list[np.ndarray], stride: int) -> list[np.ndarray]:
    """Return the word of first tokens in their best window, else NO_WORD, given that of all tokens of a row.

    Most context is the greatest distance to the nearer cut (Devlin et al. 2018, `_check_is_max_context`); the ends of
    the row are no cuts. Between two neighbouring windows that is the middle of what they share.
    """
    tokens = [window[window != NO_WORD] for window in windows]
    begins = np.cumsum([0, *(len(part) - stride for part in tokens[:-1])])
    ends = begins + [len(part) for part in tokens]
    middles = (ends[:-1] - 1 + begins[1:]) / 2
    made, before = [], NO_WORD  # `before`: the word of the token that stands before the window
    for i, (window, part) in enumerate(zip(windows, tokens, strict=True)):
        at = begins[i] + np.arange(len(part))
        first = part != np.concatenate([[before], part[:-1]])
        mine = np.searchsorted(middles, at, side="left") == i
        word = np.full(len(window), NO_WORD, dtype=np.int32)
        word[window != NO_WORD] = np.where(first & mine, part, NO_WORD)
        made.append(word)
        if len(part):  # matters only where windows share nothing: else a window's first token is at home in another
            before = part[-1]
    return made


def label(rows: Sequence[Row], windows: Columns, state: State) -> tuple[Columns, dict[int, Lost]]:
    """Return labels: the class of each annotated word at its token in `word`, else IGNORED, so that it counts once.

    Also return the rows that can't be learnt from, with the reason.
    """
    ids: dict[str | None, int] = {None: IGNORED, **{name: i for i, name in enumerate(state.labels)}}
    of_rows = [np.array([ids[tag] for tag in gold(row, state)]) for row in rows]
    owners = windows.get("row", [])
    labels = [
        np.where(word == NO_WORD, IGNORED, of_rows[row][word])
        for row, word in zip(owners, windows.get("word", []), strict=True)
    ]
    return {"labels": labels}, {i: _lost(windows, state) for i in _windowless(rows, windows)}


def unanswerable(rows: Sequence[Row], windows: Columns, state: State) -> dict[int, str]:
    """Return the rows for which the model isn't asked, with the reason."""
    why = f"{_lost(windows, state).reason}, so all get the tag of such words"
    return dict.fromkeys(_windowless(rows, windows), why)


def _windowless(rows: Sequence[Row], windows: Columns) -> list[int]:
    return sorted(set(range(len(rows))) - set(windows.get("row", [])))


def _lost(windows: Columns, state: State) -> Lost:
    if windows:
        return Lost("none of its words gives a token")
    return Lost(f"a window of max_seq_length {state.max_seq_length} has no room for a word", "--max_seq_length -1")


def padding(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the values that fill columns up; what isn't listed is padded with 0 (attention_mask, token types)."""
    return {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "word": NO_WORD,
        "labels": IGNORED,
    }
