"""Windows over words: every word once, in the window where it has most context, its first token labelled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from finetune.core.errors import DataError
from finetune.data.batches import as_windows, batches_by_length
from finetune.data.table import Row
from finetune.models.prediction import predict_rows
from finetune.params.datapreprocess import TokenClassificationPreprocessParams
from finetune.tasks.task import Lost
from finetune.tasks.token_classification import TASK
from finetune.tasks.token_classification import objective as tc_objective
from finetune.tasks.token_classification import tags as tc_tags
from finetune.tasks.token_classification import windows as tc_windows
from finetune.tasks.token_classification.windows import IGNORED, NO_WORD
from finetune.tasks.tokenizers import set_space_before_words
from tests.families import byte_level
from tests.tasks.token_classification.conftest import SENTENCES, row, state

LENGTHS = st.integers(8, 40)
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fitted(splits: dict[str, list[Row]] | None = None, model_length: int = 512, **values: Any) -> tc_windows.State:
    folders = {"model_selector_output": Path("m"), "output_dir": Path("o")}
    params = TokenClassificationPreprocessParams(**folders, **values)
    rows = {"train": [], "validation": [], "test": [], **(splits or {})}
    return tc_windows.fit(params, rows, model_length, TwoSpecialTokens())


class TwoSpecialTokens:
    """All that `fit` asks of a tokenizer."""

    def num_special_tokens_to_add(self, pair: bool) -> int:
        return 3 if pair else 2


def spaced(tokenizer: Any) -> Any:
    """As `load_tokenizer` gives it to this task."""
    set_space_before_words(tokenizer)
    return tokenizer


def test_fit_takes_the_tags_of_all_splits() -> None:
    splits = {
        "train": [row("a", "b", tags="O B-PER"), row("a")],
        "validation": [row("a", tags="I-LOC")],
        "test": [row("a", tags="B-ORG"), row("a")],
    }
    made = fitted(splits)
    assert (made.labels, made.scheme, made.wordless) == (["B-ORG", "B-PER", "I-LOC", "O"], "IOB2", "O")


def test_strangers_are_no_classes() -> None:
    splits = {"train": [row(*"abcdefghij", tags="B-PER I-PER O B-PER I-PER B-PER B-PER B-PER B-PER B-PER")] * 2}
    splits["test"] = [row("a", tags="B_PER")]
    made = fitted(splits)
    assert (made.labels, made.scheme, made.strangers) == (["B-PER", "I-PER", "O"], "IOB2", ["B_PER"])
    assert tc_windows.gold(splits["test"][0], made) == [None]
    assert fitted({"train": [row("a", "b", "c", tags="B-PER B_PER O")]}).labels == ["B-PER", "B_PER", "O"]


def test_words_that_are_not_annotated_have_no_label(tokenizer: Any) -> None:
    given_row = {**row("a", "b", "c", "d"), "tags": ["B-PER", None, "B_PER", "O"]}
    made = state(strangers=["B_PER"])
    columns = tc_windows.encode([given_row], spaced(tokenizer), made)
    labels, lost = tc_windows.label([given_row], columns, made)
    ((labelled,), (word,)) = labels["labels"], columns["word"]
    assert lost == {}
    assert {int(w): int(label) for w, label in zip(word, labelled, strict=True) if w != NO_WORD} == {
        0: 0, 1: IGNORED, 2: IGNORED, 3: 2,
    }  # fmt: skip


def test_fit_sorts_numbers_as_numbers() -> None:
    assert fitted({"train": [row("a", "b", "c", tags="10 2 0")]}).labels == ["0", "2", "10"]
    assert fitted({"train": [row("a", "b", "c", tags="10 2 x")]}).labels == ["10", "2", "x"]


def test_the_tag_of_wordless_words_is_the_most_frequent_without_O() -> None:
    made = fitted({"train": [row("a", "b", "c", tags="NOUN VERB NOUN")]})
    assert (made.scheme, made.wordless) == ("", "NOUN")
    assert fitted().wordless == "O"


def test_ties_and_other_digits() -> None:
    assert fitted({"train": [row("a", "b", "c", "d", tags="VERB NOUN VERB ADJ")]}).wordless == "VERB"
    assert fitted({"train": [row("a", "b", tags="² 1")]}).labels == ["1", "²"]  # no decimal digit


@pytest.mark.parametrize(
    ("asked", "stride", "expected"), [(64, 16, 16), (64, 61, 61), (64, 62, 15), (20, 64, 4), (3, 64, 0)]
)
def test_stride_is_lowered_where_windows_would_not_move_on(asked: int, stride: int, expected: int) -> None:
    assert fitted(max_seq_length=asked, doc_stride=stride).doc_stride == expected


def test_derived_lines() -> None:
    splits = {"train": [row("a", tags="B-PER")], "validation": [row("a", tags="O")], "test": [row("a")]}
    params = TokenClassificationPreprocessParams(model_selector_output=Path(), output_dir=Path(), max_seq_length=20)
    assert tc_windows.derived(params, fitted(splits, max_seq_length=20), splits) == [
        "doc_stride: 4 instead of 64, so that windows of 20 tokens move on",
        "classes: 2 (B-PER, O)",
        "scheme: IOB2, found in the tags",
        "warning: validation has tags that train lacks, kept as classes: O",
    ]


@QUICK
@given(
    sentences=st.lists(SENTENCES, min_size=1, max_size=3), length=LENGTHS, stride=st.integers(0, 5), pad=st.booleans()
)
def test_every_word_once_and_nothing_cut_off(
    tokenizer: Any, sentences: list[list[str]], length: int, stride: int, pad: bool
) -> None:
    spaced(tokenizer)
    rows = [row(*words) for words in sentences]
    columns = tc_windows.encode(rows, tokenizer, state(max_seq_length=length, doc_stride=stride, pad_to_max_length=pad))
    for i, given_row in enumerate(rows):
        whole = tokenizer(given_row["tokens"], is_split_into_words=True)
        with_tokens = sorted({word for word in whole.word_ids() if word is not None})
        mine = [k for k, owner in enumerate(columns.get("row", [])) if owner == i]
        found = [int(word) for k in mine for word in columns["word"][k] if word != NO_WORD]
        assert sorted(found) == with_tokens
        assert all(
            len(columns["input_ids"][k]) == length if pad else len(columns["input_ids"][k]) <= length for k in mine
        )


@QUICK
@given(count=st.integers(1, 400), room=st.integers(2, 30), data=st.data())
def test_words_are_taken_where_they_have_most_context(count: int, room: int, data: st.DataObject) -> None:
    """Against the rule spelt out; words of one token or two, windows as the tokenizers library cuts them."""
    stride = data.draw(st.integers(0, room - 1))
    tokens = np.repeat(np.arange(count), data.draw(st.lists(st.integers(1, 2), min_size=count, max_size=count)))
    begins = [0]
    while begins[-1] + room < len(tokens):
        begins.append(begins[-1] + room - stride)
    windows = [tokens[begin : begin + room].astype(np.int32) for begin in begins]
    made = tc_windows._predicted([np.concatenate([[NO_WORD], w, [NO_WORD]]) for w in windows], stride)
    assert [(m[0], m[-1]) for m in made] == [(NO_WORD, NO_WORD)] * len(windows)
    for at in np.flatnonzero(np.diff(tokens, prepend=-1)):
        context = []
        for begin, window in zip(begins, windows, strict=True):
            left = at - begin if begin else np.inf
            right = begin + len(window) - 1 - at if begin + len(window) < len(tokens) else np.inf
            context.append(min(left, right) if 0 <= at - begin < len(window) else -1)
        best = context.index(max(context))
        assert made[best][1 + at - begins[best]] == tokens[at]
    assert sum(int((m != NO_WORD).sum()) for m in made) == count


@QUICK
@given(words=SENTENCES, length=LENGTHS, data=st.data())
def test_tags_survive_labels_and_decoding(tokenizer: Any, words: list[str], length: int, data: st.DataObject) -> None:
    """A model that is sure of every label gives the tags back; words without a token get the tag of such words."""
    spaced(tokenizer)
    tags = data.draw(st.lists(st.sampled_from(["B-PER", "I-PER", "O"]), min_size=len(words), max_size=len(words)))
    given_row, made = row(*words, tags=" ".join(tags)), state(max_seq_length=length, doc_stride=2)
    columns = tc_windows.encode([given_row], tokenizer, made)
    labels, lost = tc_windows.label([given_row], columns, made)
    reduced: dict[str, Any] = {}
    if not lost:
        (batch,) = batches_by_length(as_windows(columns | labels), 1000, tc_windows.padding(tokenizer), "cpu")
        assert int(tc_objective.items(batch).sum()) == int((batch["labels"] != IGNORED).sum())
        logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 3).float() * 50
        arrays = {name: t.numpy() for name, t in tc_tags.reduce({"logits": logits}, batch, made).items()}
        reduced = tc_tags.compact(arrays)
        assert float(tc_objective.loss({"logits": logits}, batch).sum()) == pytest.approx(0, abs=1e-4)
    (prediction,) = tc_tags.decode(reduced, [given_row], made)
    known = {w for w in tokenizer(words, is_split_into_words=True).word_ids() if w is not None}
    assert prediction["tags"] == [tag if i in known else "O" for i, tag in enumerate(tags)]
    assert [score > 0 for score in prediction["scores"]] == [i in known for i in range(len(words))]
    assert bool(lost) == (not known)


def test_a_window_too_short_for_any_word(tokenizer: Any) -> None:
    assert tc_windows.encode([row("a")], tokenizer, state(max_seq_length=tokenizer.num_special_tokens_to_add())) == {}


def test_six_thousand_words_get_six_thousand_tags(tokenizer: Any) -> None:
    from tests.tasks.token_classification.test_tags import tiny_bert

    words = [f"{'ab' * (i % 3 + 1)}{i % 7}" for i in range(6000)]
    (prediction,) = predict_rows(tiny_bert(len(tokenizer)), spaced(tokenizer), [row(*words)], TASK, state(), 16)
    assert len(prediction["tags"]) == len(prediction["scores"]) == len(prediction["spans"]) == 6000
    assert min(prediction["scores"]) > 1 / 3 - 1e-6


def test_class_names_in_the_config() -> None:
    assert tc_windows.head_config(state()) == {
        "id2label": {0: "B-PER", 1: "I-PER", 2: "O"},
        "label2id": {"B-PER": 0, "I-PER": 1, "O": 2},
    }
    assert tc_windows.head_config(None) == {}


def test_a_model_from_elsewhere_brings_its_class_names() -> None:
    from transformers import BertConfig

    plain = BertConfig(num_labels=3)
    assert tc_windows.adopt(state(), plain) == state()
    named = BertConfig(id2label={0: "O", 1: "S-X", 2: "B-X", 3: "I-X", 4: "E-X"})
    assert tc_windows.adopt(state(), named) == state(labels=["O", "S-X", "B-X", "I-X", "E-X"], scheme="IOBES")
    parts = BertConfig(id2label={0: "NOUN", 1: "VERB"})
    assert tc_windows.adopt(state(), parts) == state(labels=["NOUN", "VERB"], scheme="", wordless="NOUN")
    assert tc_windows.adopt(state(wordless="VERB"), parts).wordless == "VERB"
    assert tc_windows.adopt(state(), BertConfig(id2label={0: "LABEL_0", 1: "B-X"})).labels == ["LABEL_0", "B-X"]
    nothing_known = state(labels=[], scheme="", wordless="O")
    assert tc_windows.adopt(nothing_known, BertConfig(num_labels=2)).labels == ["LABEL_0", "LABEL_1"]


def test_gold_that_means_nothing_to_the_model_is_refused() -> None:
    tc_windows.refuse([row("a", tags="B-QUEEN"), row("a")], state())
    tc_windows.refuse([row("a", tags="PROPN")], state(scheme=""))
    with pytest.raises(DataError, match="mean nothing in IOB2: 1, PROPN, S-PER"):
        tc_windows.refuse([row("a", "b", "c", tags="1 PROPN S-PER")], state())
    with pytest.raises(DataError, match="is O meant by the tag '0'"):
        tc_windows.refuse([row("a", "b", "c", tags="B-PER 0 0")], state())


def test_a_little_gold_that_means_nothing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("a", "b", tags="B-PER O")] * 9 + [{**row("a", tags="B_PER"), "row": 7}]
    tc_windows.refuse(rows, state())
    assert capsys.readouterr().out == (
        "warning: B_PER means nothing in IOB2; did you mean B-PER? left out of loss and metrics: 1 words, in row 7\n"
    )
    with pytest.raises(DataError, match="mean nothing in IOB2: B_PER"):
        tc_windows.refuse(rows[1:], state())
    tc_windows.refuse(rows[5:], state(strangers=["B_PER"]))  # as preprocess has found


def test_gold_classes_that_the_model_lacks() -> None:
    rows = [row("a", "b", "c", tags="B-QUEEN I-QUEEN O"), row("a"), row("a", "b", tags="B-PER B-QUEEN")]
    assert tc_windows.lacking(rows, state()) == {"B-QUEEN": 2, "I-QUEEN": 1}
    assert tc_windows.lacking(rows[1:2], state()) == {}


def test_rows_without_words_for_the_model(tokenizer: Any) -> None:
    rows = [row("", tags="O"), row("a", tags="O")]
    columns = tc_windows.encode(rows, tokenizer, state())
    reason = "none of its words gives a token"
    assert tc_windows.label(rows, columns, state())[1] == {0: Lost(reason)}
    assert tc_windows.unanswerable(rows, columns, state()) == {0: f"{reason}, so all get the tag of such words"}
    narrow = state(max_seq_length=tokenizer.num_special_tokens_to_add())
    lost = tc_windows.label(rows, tc_windows.encode(rows, tokenizer, narrow), narrow)[1]
    assert {one.reason for one in lost.values()} == {
        f"a window of max_seq_length {narrow.max_seq_length} has no room for a word"
    }


def test_rows_of_the_same_words_stay_on_one_side() -> None:
    assert TASK.data.group(row("a", "b")) == TASK.data.group({**row("a", "b"), "id": "other"}) == "a b"


def test_words_of_qwen_are_read_as_inside_a_text(tmp_path: Path) -> None:
    """Its tokenizer cuts words before ByteLevel, as Llama 3's does."""
    tokenizer = byte_level(Qwen2Tokenizer, tmp_path)
    words = ["don't", "in", "2019", "the", "", "Oslo"]
    columns = tc_windows.encode([{"tokens": words}], tokenizer, state(max_seq_length=100))
    assert columns["input_ids"][0] == tokenizer(" " + " ".join(filter(None, words)))["input_ids"]
    assert [int(word) for word in columns["word"][0] if word >= 0] == [0, 1, 2, 3, 5]
