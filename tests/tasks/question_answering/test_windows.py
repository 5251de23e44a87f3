"""Rows -> windows and labels, for every kind of tokenizer."""

import json
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
    peaked,
    row,
    state,
    state_whole,
    tiny_bert,
    validated,
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


def context_tokens(columns: Columns, window: int) -> list[tuple[int, int]]:
    """(first, after) characters of the window's context tokens."""
    pairs = zip(columns["offset_start"][window], columns["offset_end"][window], strict=True)
    return [(int(start), int(end)) for start, end in pairs if start != qa_windows.NO_SPAN]


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
    assert set().union(*map(characters, windows)) == characters(context_tokens(whole, 0))
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


def characters(tokens: list[tuple[int, int]]) -> set[int]:
    """The characters that tokens cover; white space and lone accents may be in none."""
    return {c for start, end in tokens for c in range(start, end)}


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
    tokenized = {start, end - 1} <= characters(context_tokens(whole, 0))
    for i, null in enumerate(columns.get("null_position", [])):
        first, last = labels["start_positions"][i], labels["end_positions"][i]
        if (first, last) == (null, null):
            continue
        outputs, batch = peaked(columns, labels, i)
        reduced = {name: tensor.numpy() for name, tensor in qa_spans.reduce(outputs, batch, made).items()}
        (prediction,) = qa_spans.decode(reduced, [gold], made)
        assert text in prediction["text"]
        assert prediction["start"] <= start < end <= prediction["end"]
        assert first <= last
        if tokenized:
            assert columns["offset_end"][i][first] > start
            assert columns["offset_start"][i][last] < end

    if tokenized:
        assert qa_windows.label([gold], whole, state())[1] == set()
        held = any(w[0][0] <= start and w[-1][1] >= end for w in _windows(columns) if w)
        assert lost == (set() if held else {0})


def test_answer_with_spaces_around(tokenizer: Any) -> None:
    """The words beside the spaces are no part of the answer."""
    gold = row("aa bb cc", text=" bb ", start=2)
    columns = qa_windows.encode([gold], tokenizer, state())
    labels, lost = qa_windows.label([gold], columns, state())
    first, last = labels["start_positions"][0], labels["end_positions"][0]
    low, high = columns["offset_start"][0][first], columns["offset_end"][0][last]
    assert (gold["context"][low:high].strip(), lost) == ("bb", set())


def test_windows_that_hold_part_of_the_answer_point_at_null(tokenizer: Any) -> None:
    gold = row("a b c d e " * 10, text="c d", start=44)
    columns = qa_windows.encode([gold], tokenizer, state(max_seq_length=14, doc_stride=2))
    labels, lost = qa_windows.label([gold], columns, state())
    assert lost == set()
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
    assert lost == set()
    of_first = [i for i, r in enumerate(columns["row"]) if r == 0]
    assert len(of_first) > 1
    for i in of_first:
        assert labels["start_positions"][i] == labels["end_positions"][i] == columns["null_position"][i]


def test_question_too_long(tokenizer: Any) -> None:
    """No window, no answer, nothing to learn from; the rows beside it keep their own."""
    rows = [row("a b c", "a b " * 40, "b", 2), row("a b c", text="b", start=2), row("a b c", "a b " * 40)]
    columns = qa_windows.encode(rows, tokenizer, state(max_seq_length=40))
    assert columns["row"] == [1]
    assert qa_windows.label(rows, columns, state())[1] == {0, 2}
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
    assert lost == set()
    for i, r in enumerate(rows):
        first, last = labels["start_positions"][i], labels["end_positions"][i]
        low, high = columns["offset_start"][i][first], columns["offset_end"][i][last]
        assert not r["answers"]["text"] or r["answers"]["text"][0] in r["context"][low:high]
