"""Rows -> windows and labels, for every kind of tokenizer."""

import json
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from finetune.data.table import Row
from finetune.models.prediction import predict_rows
from finetune.params.datapreprocess import QuestionAnsweringPreprocessParams
from finetune.tasks.question_answering import TASK
from finetune.tasks.question_answering import spans as qa_spans
from finetune.tasks.question_answering import windows as qa_windows
from finetune.tasks.task import Columns
from tests.tasks.question_answering.conftest import (
    PARAGRAPHS,
    QUESTIONS,
    WHOLE,
    characters,
    context_tokens,
    peaked,
    row,
    state,
    state_whole,
    tiny_bert,
    validated,
    wordpiece,
)


def fitted(model_length: int = 512, rows: tuple[Row, ...] = (), **values: Any) -> qa_windows.State:
    folders = {"model_selector_output": Path("m"), "output_dir": Path("o")}
    params = QuestionAnsweringPreprocessParams(**folders, **values)
    return qa_windows.fit(params, {"train": list(rows)}, model_length, three_special_tokens())


@cache
def three_special_tokens() -> Any:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    return BertTokenizerFast(vocab={name: i for i, name in enumerate(names)})


@pytest.mark.parametrize(("asked_for", "length"), [(-1, 512), (1000, 512), (512, 512), (384, 384)])
def test_fit_length(asked_for: int, length: int) -> None:
    assert fitted(max_seq_length=asked_for).max_seq_length == length


def test_fit_keeps_what_was_asked() -> None:
    made = fitted(doc_stride=100, n_best_size=7, max_answer_length_in_tokens=9, pad_to_max_length=True)
    assert made == state(
        max_seq_length=512, doc_stride=100, n_best_size=7, max_answer_length_in_tokens=9, pad_to_max_length=True
    )


@pytest.mark.parametrize("length", [8, 40, 64, 128, 131])
def test_fit_lowers_a_stride_that_leaves_no_room(length: int) -> None:
    stride = fitted(max_seq_length=length, doc_stride=128).doc_stride
    assert 0 < stride < length / 3


def test_fit_sees_unanswerable_rows() -> None:
    assert not fitted(rows=(row("a b", text="b", start=2),)).no_answer
    assert fitted(rows=(row("a b", text="b", start=2), row("a b"))).no_answer
    assert not fitted(rows=({**row("a b"), "answers": None},)).no_answer


@settings(max_examples=150, deadline=None)
@given(PARAGRAPHS, QUESTIONS, st.integers(6, 64), st.integers(0, 60), st.booleans())
def test_windows(tokenizer: Any, context: str, question: str, length: int, stride: int, pad: bool) -> None:
    made = fitted(max_seq_length=length, doc_stride=stride, pad_to_max_length=pad)
    special = tokenizer.num_special_tokens_to_add(pair=True) + (tokenizer.cls_token_id is None)
    columns = qa_windows.encode([row(context, question)], tokenizer, made)
    if not columns:
        question_length = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        assert question_length + special + made.doc_stride >= length
        assert qa_spans.decode({}, [row(context, question)], made)[0]["text"] == ""
        return

    lengths = [len(ids) for ids in columns["input_ids"]]
    assert max(lengths) <= length
    if pad:
        assert set(lengths) == {length}
    else:
        assert all(min(mask) == 1 for mask in columns["attention_mask"])
    for name in ("attention_mask", "offset_start", "offset_end"):
        assert [len(values) for values in columns[name]] == lengths
    for ids, mask, null, starts in _pairs(columns, "input_ids", "attention_mask", "null_position", "offset_start"):
        assert starts[null] == qa_windows.NO_SPAN and list(mask) == sorted(mask, reverse=True)
        if tokenizer.cls_token_id is None:
            assert (ids[null], null) == (tokenizer.eos_token_id, sum(mask) - 1)
        else:
            assert ids[null] == tokenizer.cls_token_id

    windows = _windows(columns)
    whole = qa_windows.encode([row(context, question)], tokenizer, state_whole())
    covered = characters(context_tokens(whole, 0))
    assert set().union(*map(characters, windows)) == covered
    for token_ends, answer_ends in _pairs(columns, "token_end", "offset_end"):
        for end, after in zip(token_ends, answer_ends, strict=True):
            assert after >= end and not covered & set(range(end, after))
            assert all(unicodedata.category(c)[0] == "M" for c in context[end:after])
    for window, after in pairwise(_context_ids(columns)):
        assert window[len(window) - made.doc_stride :] == after[: made.doc_stride]
        assert len(after) > made.doc_stride


def _pairs(columns: Columns, *names: str) -> Any:
    return zip(*(columns[name] for name in names), strict=True)


def _windows(columns: Columns) -> list[list[tuple[int, int]]]:
    return [context_tokens(columns, i) for i in range(len(columns.get("row", [])))]


def _context_ids(columns: Columns) -> list[list[int]]:
    pairs = _pairs(columns, "input_ids", "offset_start")
    return [[i for i, start in zip(ids, starts, strict=True) if start != qa_windows.NO_SPAN] for ids, starts in pairs]


def answered(data: st.DataObject, context: str, question: str) -> Row:
    """A row whose answer is any part of the context without white space around it."""
    starts = [i for i, c in enumerate(context) if c.strip()]
    start = data.draw(st.sampled_from(starts))
    end = data.draw(st.sampled_from([i for i in starts if i >= start][:20])) + 1
    return row(context, question, context[start:end], start)


@settings(max_examples=200, deadline=None)
@given(st.data(), PARAGRAPHS, QUESTIONS, st.integers(24, 64), st.integers(0, 12))
def test_labels_decode_to_the_answer(
    tokenizer: Any, data: st.DataObject, context: str, question: str, length: int, stride: int
) -> None:
    """Label -> logits -> reduce -> decode gives the answer back, with no token too many."""
    gold = answered(data, context, question)
    text, start = gold["answers"]["text"][0], gold["answers"]["answer_start"][0]
    end = start + len(text)
    made = state(max_seq_length=length, doc_stride=stride, max_answer_length_in_tokens=WHOLE)
    columns = qa_windows.encode([gold], tokenizer, made)
    labels, lost = qa_windows.label([gold], columns, made)
    whole = qa_windows.encode([gold], tokenizer, state_whole())
    covered = [i for i in range(start, end) if i in characters(context_tokens(whole, 0))]
    tokenized = {start, end - 1} <= set(covered)
    for i in held_windows(columns, labels):
        first, last = labels["start_positions"][i], labels["end_positions"][i]
        outputs, batch = peaked(columns, labels, i)
        reduced = {name: tensor.numpy() for name, tensor in qa_spans.reduce(outputs, batch, made).items()}
        (prediction,) = qa_spans.decode(reduced, [gold], made)
        assert prediction["start"] <= covered[0] <= covered[-1] < prediction["end"]
        assert first <= last
        if tokenized:
            assert columns["token_end"][i][first] > start
            assert columns["offset_start"][i][last] < end

    if tokenized:
        assert qa_windows.label([gold], whole, state())[1] == {}
        held = any(w[0][0] <= start and w[-1][1] >= end for w in _windows(columns) if w)
        assert set(lost) == (set() if held else {0})


SCRIPTS = {
    "Devanagari": "हिन्दी में लिखी कि स्त्री क़लम",
    "Thai": "ที่ น้ำ ไม่ กำลัง ผู้",
    "Arabic": "كَتَبَ مُحَمَّدٌ فِي الكِتَابِ",
    "Hangul jamo": unicodedata.normalize("NFD", "한국 서울 사람이 값"),
    "emoji": "❤️ 👩‍👧 👍🏽 ✈️ 1️⃣ 🏳️‍🌈 \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "Latin": unicodedata.normalize("NFD", "abé café naïvé ña ǻ"),
    "marks of no width": "\u200babc abc\u200b a\ufe0f bc\u200d \ufeffab",
}


@pytest.mark.parametrize("script", SCRIPTS)
@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(24, 90), st.integers(0, 8))
def test_answers_of_all_scripts_are_given_back(
    tokenizer: Any, script: str, data: st.DataObject, length: int, stride: int
) -> None:
    """Words of any script, labelled and decoded: what is missing at the edges has no tokens and is no mark."""
    words = data.draw(st.lists(st.sampled_from([*SCRIPTS[script].split(), "ab", "cde"]), min_size=1, max_size=30))
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 3, len(words) - 1)))
    before, text = "".join(f"{word} " for word in words[:first]), " ".join(words[first : last + 1])
    gold = row(" ".join(words), text=text, start=len(before))
    made = state(max_seq_length=length, doc_stride=stride, max_answer_length_in_tokens=WHOLE)
    covered = characters(context_tokens(qa_windows.encode([gold], tokenizer, state_whole()), 0))
    with_tokens = [i for i in range(len(before), len(before) + len(text)) if i in covered]
    columns = qa_windows.encode([gold], tokenizer, made)
    labels, lost = qa_windows.label([gold], columns, made)
    assert with_tokens or lost == {0: qa_windows.STRIPPED}
    for i in held_windows(columns, labels):
        outputs, batch = peaked(columns, labels, i)
        reduced = {name: tensor.numpy() for name, tensor in qa_spans.reduce(outputs, batch, made).items()}
        (prediction,) = qa_spans.decode(reduced, [gold], made)
        assert prediction["text"] == prediction["span_text"] == prediction["n_best"][0]["text"]
        assert prediction["text"] in text
        assert prediction["start"] == with_tokens[0]
        rest = gold["context"][prediction["end"] : len(before) + len(text)]
        assert not covered & set(range(prediction["end"], len(before) + len(text)))
        assert not rest or not unicodedata.category(rest[0]).startswith("M")


def held_windows(columns: Columns, labels: Columns) -> list[int]:
    """The windows that hold the answer."""
    pairs = zip(labels["start_positions"], columns.get("null_position", []), strict=True)
    return [i for i, (start, null) in enumerate(pairs) if start != null]


@pytest.mark.parametrize("answer", ["साधु", "नहीं"])
def test_a_vowel_sign_at_the_end(tmp_path: Path, answer: str) -> None:
    """BERT's tokenizer drops it, and the answer is given back all the same."""
    gold = row(context := "वह साधु है, नहीं तो", text=answer, start=context.index(answer))
    tokenizer = wordpiece(tmp_path)
    columns = qa_windows.encode([gold], tokenizer, state())
    labels, lost = qa_windows.label([gold], columns, state())
    assert (held_windows(columns, labels), lost) == ([0], {})
    low, high = columns["offset_start"][0], columns["offset_end"][0]
    assert context[low[labels["start_positions"][0]] : high[labels["end_positions"][0]]] == answer


def test_an_answer_of_dropped_characters_alone(tmp_path: Path) -> None:
    gold = [row("ab\u0301 \u200b cd", text=text, start=start) for text, start in (("\u0301", 2), ("\u200b", 4))]
    columns = qa_windows.encode(gold, wordpiece(tmp_path), state())
    labels, lost = qa_windows.label(gold, columns, state())
    assert held_windows(columns, labels) == []
    assert lost == dict.fromkeys((0, 1), qa_windows.STRIPPED)
    assert qa_windows.unanswerable(gold, columns, state()) == dict.fromkeys((0, 1), qa_windows.STRIPPED.reason)


def test_an_answer_cut_at_the_edge_of_windows_is_not_held(tokenizer: Any) -> None:
    """Though what is missing of it are marks: they are tokens of the next window, or else nothing is missing."""
    gold = row("a b c d e " * 10, text="b c d e a b c d e a b", start=2)
    made = state(max_seq_length=16, doc_stride=2)
    columns = qa_windows.encode([gold], tokenizer, made)
    labels, lost = qa_windows.label([gold], columns, made)
    assert held_windows(columns, labels) == []
    assert "longer than the doc_stride 2 tokens that windows of max_seq_length 16 share" in lost[0].reason
    assert lost[0].fix == "--doc_stride above 2"
    assert qa_windows.unanswerable([gold], columns, made) == {0: lost[0].reason}


def test_lengths_of_answers(tokenizer: Any) -> None:
    rows = [row("a b c d e", text="b c d", start=2), row("a b", text="b", start=2), row("a b"), row("a b " * 40)]
    columns = qa_windows.encode(rows, tokenizer, state())
    labels, _ = qa_windows.label(rows, columns, state())
    lengths = qa_windows.gold_lengths(columns | labels)
    assert len(lengths) == 2 and lengths[0] >= 3 * lengths[1]
    made = state(max_answer_length_in_tokens=lengths[0] - 1)
    assert list(qa_windows.unanswerable(rows, columns, made)) == [0]
    rows[1]["answers"] = {"text": ["b", "a b"], "answer_start": [2, 0]}
    assert list(qa_windows.unanswerable(rows, columns, made)) == [0]
    rows[0]["answers"] = {"text": ["b c d", "d"], "answer_start": [2, 6]}
    assert qa_windows.unanswerable(rows, columns, made) == {}
    rows[0]["answers"] = {"text": ["b c d", "b c d e"], "answer_start": [2, 2]}
    assert list(qa_windows.unanswerable(rows, columns, made)) == [0]


def test_answers_too_long_to_be_predicted_are_told() -> None:
    assert qa_windows.beyond([3, 30, 30], state()) == qa_windows.beyond([], state()) == []
    assert qa_windows.beyond([*range(21, 29), 40, 50], state()) == [
        "2 of 10 gold answers (20.0%) are longer than max_answer_length_in_tokens (30): they can't be predicted whole; "
        "--max_answer_length_in_tokens 50 reaches 99%"
    ]
    assert "reaches 99%" in qa_windows.beyond([1] * 980 + [31] * 20, state())[0]
    assert qa_windows.beyond([1] * 999 + [31], state())[0].endswith("--max_answer_length_in_tokens 31 reaches all")


def test_answer_with_spaces_around(tokenizer: Any) -> None:
    """The words beside the spaces are no part of the answer."""
    gold = row("aa bb cc", text=" bb ", start=2)
    columns = qa_windows.encode([gold], tokenizer, state())
    labels, lost = qa_windows.label([gold], columns, state())
    first, last = labels["start_positions"][0], labels["end_positions"][0]
    low, high = columns["offset_start"][0][first], columns["offset_end"][0][last]
    assert (gold["context"][low:high].strip(), lost) == ("bb", {})


def test_windows_that_hold_part_of_the_answer_point_at_null(tokenizer: Any) -> None:
    gold = row("a b c d e " * 10, text="c d", start=44)
    columns = qa_windows.encode([gold], tokenizer, state(max_seq_length=14, doc_stride=2))
    labels, lost = qa_windows.label([gold], columns, state())
    assert lost == {}
    for window, null, first, last in zip(
        _windows(columns), columns["null_position"], labels["start_positions"], labels["end_positions"], strict=True
    ):
        if window[0][0] <= 44 and window[-1][1] >= 47:
            assert (columns["offset_start"][0][first] == qa_windows.NO_SPAN, last >= first) == (False, True)
        else:
            assert (first, last) == (null, null)


def test_unanswerable_rows_are_labelled_null_and_kept(tokenizer: Any) -> None:
    rows = [row("a b c " * 30), row("a b", text="b", start=2)]
    columns = qa_windows.encode(rows, tokenizer, state(max_seq_length=20, doc_stride=4))
    labels, lost = qa_windows.label(rows, columns, state())
    assert lost == {}
    of_first = [i for i, r in enumerate(columns["row"]) if r == 0]
    assert len(of_first) > 1
    for i in of_first:
        assert labels["start_positions"][i] == labels["end_positions"][i] == columns["null_position"][i]


def test_question_too_long(tokenizer: Any) -> None:
    """No window, no answer, nothing to learn from; the rows beside it keep their own."""
    rows = [row("a b c", "a b " * 40, "b", 2), row("a b c", text="b", start=2), row("a b c", "a b " * 40)]
    columns = qa_windows.encode(rows, tokenizer, state(max_seq_length=40))
    assert columns["row"] == [1]
    lost = qa_windows.label(rows, columns, state(max_seq_length=40))[1]
    assert set(lost) == {0, 2}
    assert "too long beside doc_stride 8 tokens of context in a window of max_seq_length 40" in lost[0].reason
    assert lost[0].fix == "--doc_stride below 8"
    empty = f"{lost[0].reason}, so its prediction is empty"
    unannotated = [{**r, "answers": None} for r in rows]
    for given_rows in (rows, unannotated):
        assert qa_windows.unanswerable(given_rows, columns, state(max_seq_length=40)) == {0: empty, 2: empty}
    model = tiny_bert(len(tokenizer))
    first, second, third = predict_rows(model, tokenizer, rows, TASK, state(max_seq_length=40), batch_size=8)
    assert (
        first
        == third
        == {"text": "", "score": 0.0, "start": -1, "end": -1, "span_text": "", "null_score": 0.0, "n_best": []}
    )
    assert second["text"] != ""
    assert qa_windows.encode(rows[:1], tokenizer, state(max_seq_length=40)) == {}
    assert predict_rows(model, tokenizer, rows[:1], TASK, state(max_seq_length=40), batch_size=8) == [first]


@pytest.mark.parametrize("name", ["squad_v1", "squad_v2"])
def test_real_answers_are_labelled(real_data: Path, tokenizer: Any, name: str) -> None:
    """Every answer of a real file is found in the one window that holds the whole context."""
    with (real_data / name / "smoke" / "validation.jsonl").open(encoding="utf-8") as file:
        given_rows = [json.loads(line) for line in file]
    rows, audit = validated(*given_rows)
    assert (len(rows), audit.problems) == (100, {})
    columns = qa_windows.encode(rows, tokenizer, state_whole())
    labels, lost = qa_windows.label(rows, columns, state())
    assert lost == {}
    for i, r in enumerate(rows):
        first, last = labels["start_positions"][i], labels["end_positions"][i]
        low, high = columns["offset_start"][i][first], columns["offset_end"][i][last]
        assert not r["answers"]["text"] or r["answers"]["text"][0] in r["context"][low:high]
