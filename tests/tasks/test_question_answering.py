"""Question answering: rows, windows, labels, loss, the best spans and their decoding."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from finetune.errors import DataError
from finetune.model import longest_window
from finetune.params import QuestionAnsweringColumns, QuestionAnsweringPreprocessParams
from finetune.prediction import as_windows, batches_by_length, collate, forward, predict, predict_rows
from finetune.tables import Audit, Row, Table
from finetune.tasks import question_answering as qa
from finetune.tasks.task import Columns

TEXTS = st.text(st.sampled_from("aábcdeABÉ 019.,-'한국漢字東仮🙂👩‍👧½ﬁñ\u0301\u0308\u200b\u2028\n\t  "), max_size=12)
PARAGRAPHS = st.lists(TEXTS, min_size=1, max_size=60).map(" ".join).filter(str.strip)
QUESTIONS = st.lists(TEXTS, min_size=1, max_size=5).map(" ".join).filter(str.strip)
TRAINED_ON = ["abcde ABE a\u0301 n\u0303 019 .,-' 한국 漢字 東 仮 🙂 👩 👧 1⁄2 fi"] * 3
WHOLE = 10_000  # longer than any context here: one window


@pytest.fixture(scope="module", params=["wordpiece", "byte_level"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two kinds that differ in what one character becomes: accents stripped, jamo and bytes as tokens of their own."""
    if request.param == "wordpiece":
        wordpiece = BertWordPieceTokenizer(lowercase=True)
        wordpiece.train_from_iterator(TRAINED_ON, vocab_size=200, min_frequency=1, show_progress=False)
        file = tmp_path_factory.mktemp("wordpiece") / "tokenizer.json"
        wordpiece.save(str(file))
        return BertTokenizerFast(tokenizer_file=str(file))
    names = ["<s>", "<pad>", "</s>"]
    byte_level = ByteLevelBPETokenizer()
    byte_level.train_from_iterator(["abcde abc"] * 3, vocab_size=270, special_tokens=names, show_progress=False)
    byte_level._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level._tokenizer, cls_token="<s>", pad_token="<pad>", sep_token="</s>"
    )


def state(**values: Any) -> qa.State:
    defaults = {
        "max_seq_length": 64, "doc_stride": 8, "pad_to_max_length": False, "n_best_size": 5,
        "max_answer_length_in_tokens": 30, "no_answer": False,
    }  # fmt: skip
    return qa.State(**{**defaults, **values})


def row(context: str, question: str = "a?", text: str | None = None, start: int = 0) -> Row:
    answers = {"text": [], "answer_start": []} if text is None else {"text": [text], "answer_start": [start]}
    return {"id": "1", "row": 1, "question": question, "context": context, "answers": answers}


def tiny_bert(vocab_size: int) -> BertForQuestionAnswering:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForQuestionAnswering(BertConfig(vocab_size=vocab_size, **sizes)).eval()


# --- validate ---


def validated(*rows: Row, **columns: str) -> tuple[list[Row], Audit]:
    audit = Audit()
    names = tuple(dict.fromkeys(name for r in rows for name in r))
    table = Table("file.csv", names, list(rows), list(range(11, 11 + len(rows))))
    return qa.validate(table, QuestionAnsweringColumns(**columns), audit), audit


def asked(answers: Any) -> Row:
    return {"id": "x", "question": "Who?", "context": "It was Ada Lovelace in 1843.", "answers": answers}


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Ada Lovelace"], "answer_start": [7]},
        {"text": "Ada Lovelace", "answer_start": 7},
        {"text": ["Ada Lovelace"], "answer_start": ["7"]},
        {"text": ["Ada Lovelace", None], "answer_start": [7, None]},
        '{"text": ["Ada Lovelace"], "answer_start": [7]}',
        '{"text": "Ada Lovelace", "answer_start": "7"}',
    ],
)
def test_answers_are_read(answers: Any) -> None:
    (made,), audit = validated(asked(answers))
    assert made == {**asked({"text": ["Ada Lovelace"], "answer_start": [7]}), "row": 11}
    assert audit.problems == {}


@pytest.mark.parametrize(
    "answers", [{"text": [], "answer_start": []}, {"text": None, "answer_start": None}, '{"text":[],"answer_start":[]}']
)
def test_empty_lists_mean_no_answer(answers: Any) -> None:
    (made,), _ = validated(asked(answers))
    assert made["answers"] == {"text": [], "answer_start": []}
    assert qa.has_gold(made)


@pytest.mark.parametrize("answers", [None, ""])
def test_no_answers_mean_not_annotated(answers: Any) -> None:
    (made,), _ = validated(asked(answers))
    assert made["answers"] is None
    assert not qa.has_gold(made)


def test_file_without_answers_column() -> None:
    (made,), _ = validated({"question": "q", "context": "c"})
    assert made == {"id": "11", "row": 11, "question": "q", "context": "c", "answers": None}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"answers": {"text": ["Ada"], "answer_start": []}}, "another number of texts"),
        ({"answers": {"text": ["Ada"], "answer_start": [None]}}, "offset no number"),
        ({"answers": {"text": ["Ada"], "answer_start": ["first"]}}, "offset no number"),
        ({"answers": {"text": ["Ada"], "answer_start": ["--7"]}}, "offset no number"),
        ({"answers": {"text": ["Ada"], "answer_start": ["²"]}}, "offset no number"),
        ({"answers": {"text": ["Ada"], "answer_start": [True]}}, "offset no number"),
        ({"answers": {"text": [7], "answer_start": [7]}}, "no string"),
        ({"answers": {"text": ["Ada"]}}, "no object with 'text' and 'answer_start'"),
        ({"answers": ["Ada"]}, "no object"),
        ({"answers": "Ada"}, "not valid JSON"),
        ({"answers": {"text": ["Grace"], "answer_start": [7]}}, "not in the context"),
        ({"answers": {"text": ["Ada"], "answer_start": [-400]}}, "not in the context"),
        ({"answers": {"text": ["Ada"], "answer_start": [400]}}, "not in the context"),
        ({"question": "  "}, "no question"),
        ({"question": None}, "no question"),
        ({"context": 5}, "no context"),
    ],
)
def test_wrong_rows_are_dropped_and_counted(wrong: Row, reason: str) -> None:
    good = asked({"text": ["Ada"], "answer_start": [7]})
    rows, audit = validated({**good, **wrong}, good, {**good, **wrong})
    assert [r["row"] for r in rows] == [12]
    ((found, entry),) = audit.problems.items()
    assert reason in found
    assert entry == {"action": "dropped", "count": 2, "rows": [11, 13]}


def test_wrong_offsets_near_by_are_repaired() -> None:
    """Within 50 characters; a row whose answer is farther away is dropped."""
    context = "Ada " + "x" * 60 + " Ada " + "y" * 60
    answers = [{"text": ["Ada"], "answer_start": [start]} for start in (3, 60, 65, 116, 1)]
    rows, audit = validated(*({"question": "q", "context": context, "answers": a} for a in answers))
    assert [r["answers"]["answer_start"] for r in rows] == [[0], [65], [65], [0]]
    assert audit.problems["answer_start was off; the answer stands near by"] == {
        "action": "repaired", "count": 3, "rows": [11, 12, 15],
    }  # fmt: skip
    assert audit.problems["the answer is not in the context"]["rows"] == [14]


def test_the_nearer_of_two_occurrences() -> None:
    answers = [{"text": ["Ada"], "answer_start": [start]} for start in (1, 19)]
    rows, _ = validated(*({"question": "q", "context": "Ada met another Ada.", "answers": a} for a in answers))
    assert [r["answers"]["answer_start"] for r in rows] == [[0], [16]]


def test_any_column_names() -> None:
    columns = {
        "question_key": "ask", "context_key": "passage", "answers_key": "gold", "answer_text_key": "spans",
        "answer_start_key": "at",
    }  # fmt: skip
    (made,), _ = validated({"ask": "Q", "passage": "a b", "gold": {"spans": ["b"], "at": [2]}}, **columns)
    assert made["answers"] == {"text": ["b"], "answer_start": [2]}
    assert (made["question"], made["context"]) == ("Q", "a b")


def test_missing_columns_are_an_error() -> None:
    with pytest.raises(DataError, match="did you mean context"):
        validated(asked(None), context_key="contexts")


# --- fit ---


def fitted(model_length: int = 512, rows: tuple[Row, ...] = (), **values: Any) -> qa.State:
    folders = {"model_selector_output": Path("m"), "output_dir": Path("o")}
    return qa.fit(QuestionAnsweringPreprocessParams(**folders, **values), list(rows), model_length, special_tokens=3)


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


# --- windows and labels ---


def context_tokens(columns: Columns, window: int) -> list[tuple[int, int]]:
    """(first, after) characters of the window's context tokens."""
    pairs = zip(columns["offset_start"][window], columns["offset_end"][window], strict=True)
    return [(int(start), int(end)) for start, end in pairs if start != qa.NO_SPAN]


@settings(max_examples=150, deadline=None)
@given(PARAGRAPHS, QUESTIONS, st.integers(6, 64), st.integers(0, 60), st.booleans())
def test_windows(tokenizer: Any, context: str, question: str, length: int, stride: int, pad: bool) -> None:
    made = fitted(max_seq_length=length, doc_stride=stride, pad_to_max_length=pad)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    columns = qa.encode([row(context, question)], tokenizer, made)
    if not columns:
        question_length = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        assert question_length + special + made.doc_stride >= length
        assert qa.decode({}, [row(context, question)], made)[0]["text"] == ""
        return

    lengths = [len(ids) for ids in columns["input_ids"]]
    assert max(lengths) <= length
    if pad:
        assert set(lengths) == {length}
    else:
        assert all(min(mask) == 1 for mask in columns["attention_mask"])
    for name in ("attention_mask", "offset_start", "offset_end"):
        assert [len(values) for values in columns[name]] == lengths
    assert all(ids[null] == tokenizer.cls_token_id for ids, null in _pairs(columns, "input_ids", "null_position"))

    windows = _windows(columns)
    whole = qa.encode([row(context, question)], tokenizer, state_whole())
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
    return [[i for i, start in zip(ids, starts, strict=True) if start != qa.NO_SPAN] for ids, starts in pairs]


def characters(tokens: list[tuple[int, int]]) -> set[int]:
    """The characters that tokens cover; white space and lone accents may be in none."""
    return {c for start, end in tokens for c in range(start, end)}


def state_whole(**values: Any) -> qa.State:
    return state(max_seq_length=WHOLE, max_answer_length_in_tokens=WHOLE, **values)


def answered(data: st.DataObject, context: str, question: str) -> Row:
    """A row whose answer is any part of the context without white space around it."""
    starts = [i for i, c in enumerate(context) if c.strip()]
    start = data.draw(st.sampled_from(starts))
    end = data.draw(st.sampled_from([i for i in starts if i >= start][:20])) + 1
    return row(context, question, context[start:end], start)


def peaked(columns: Columns, labels: Columns, window: int) -> tuple[Any, Any]:
    """Outputs and batch of one window in which the model is sure of the labelled span."""
    length = len(columns["input_ids"][window])
    start, end = torch.zeros(1, length), torch.zeros(1, length)
    start[0, labels["start_positions"][window]] = end[0, labels["end_positions"][window]] = 50.0
    batch = collate([as_windows(columns)[window]], {})
    return {"start_logits": start, "end_logits": end}, batch


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
    columns = qa.encode([gold], tokenizer, made)
    labels, lost = qa.label([gold], columns)
    whole = qa.encode([gold], tokenizer, state_whole())
    tokenized = {start, end - 1} <= characters(context_tokens(whole, 0))
    for i, null in enumerate(columns.get("null_position", [])):
        first, last = labels["start_positions"][i], labels["end_positions"][i]
        if (first, last) == (null, null):
            continue
        outputs, batch = peaked(columns, labels, i)
        reduced = {name: tensor.numpy() for name, tensor in qa.reduce(outputs, batch, made).items()}
        (prediction,) = qa.decode(reduced, [gold], made)
        assert text in prediction["text"]
        assert prediction["start"] <= start < end <= prediction["end"]
        assert first <= last
        if tokenized:
            assert columns["offset_end"][i][first] > start
            assert columns["offset_start"][i][last] < end

    if tokenized:
        assert qa.label([gold], whole)[1] == set()
        held = any(w[0][0] <= start and w[-1][1] >= end for w in _windows(columns) if w)
        assert lost == (set() if held else {0})


def test_answer_with_spaces_around(tokenizer: Any) -> None:
    """The words beside the spaces are no part of the answer."""
    gold = row("aa bb cc", text=" bb ", start=2)
    columns = qa.encode([gold], tokenizer, state())
    labels, lost = qa.label([gold], columns)
    first, last = labels["start_positions"][0], labels["end_positions"][0]
    low, high = columns["offset_start"][0][first], columns["offset_end"][0][last]
    assert (gold["context"][low:high].strip(), lost) == ("bb", set())


def test_windows_that_hold_part_of_the_answer_point_at_null(tokenizer: Any) -> None:
    gold = row("a b c d e " * 10, text="c d", start=44)
    columns = qa.encode([gold], tokenizer, state(max_seq_length=14, doc_stride=2))
    labels, lost = qa.label([gold], columns)
    assert lost == set()
    for window, null, first, last in zip(
        _windows(columns), columns["null_position"], labels["start_positions"], labels["end_positions"], strict=True
    ):
        if window[0][0] <= 44 and window[-1][1] >= 47:
            assert (columns["offset_start"][0][first] == qa.NO_SPAN, last >= first) == (False, True)
        else:
            assert (first, last) == (null, null)


def test_unanswerable_rows_are_labelled_null_and_kept(tokenizer: Any) -> None:
    rows = [row("a b c " * 30), row("a b", text="b", start=2)]
    columns = qa.encode(rows, tokenizer, state(max_seq_length=20, doc_stride=4))
    labels, lost = qa.label(rows, columns)
    assert lost == set()
    of_first = [i for i, r in enumerate(columns["row"]) if r == 0]
    assert len(of_first) > 1
    assert all(labels["start_positions"][i] == labels["end_positions"][i] == 0 for i in of_first)


def test_question_too_long(tokenizer: Any) -> None:
    """No window, no answer, nothing to learn from; the rows beside it keep their own."""
    rows = [row("a b c", "a b " * 40, "b", 2), row("a b c", text="b", start=2), row("a b c", "a b " * 40)]
    columns = qa.encode(rows, tokenizer, state(max_seq_length=40))
    assert columns["row"] == [1]
    assert qa.label(rows, columns)[1] == {0, 2}
    model = tiny_bert(len(tokenizer))
    first, second, third = predict_rows(model, tokenizer, rows, qa.TASK, state(max_seq_length=40), batch_size=8)
    assert (
        first
        == third
        == {"text": "", "score": 0.0, "start": -1, "end": -1, "span_text": "", "null_score": 0.0, "n_best": []}
    )
    assert second["text"] != ""
    assert qa.encode(rows[:1], tokenizer, state(max_seq_length=40)) == {}
    assert predict_rows(model, tokenizer, rows[:1], qa.TASK, state(max_seq_length=40), batch_size=8) == [first]


# --- loss ---


def test_loss_does_not_see_padding(tokenizer: Any) -> None:
    model = tiny_bert(len(tokenizer))
    rows = [row("a b c d", text="b c", start=2), row("a b c d e " * 8, text="d e", start=26)]
    columns = qa.encode(rows, tokenizer, state(max_seq_length=200))
    windows = as_windows(columns | qa.label(rows, columns)[0])
    padding = qa.padding(tokenizer)

    def losses(*chosen: dict[str, Any]) -> torch.Tensor:
        batch = collate(chosen, padding)
        return qa.loss(forward(model, batch, qa.TASK), batch)

    alone = torch.cat([losses(window) for window in windows])
    torch.testing.assert_close(losses(*windows), alone, atol=1e-5, rtol=1e-5)


def test_loss_is_that_of_transformers_without_padding() -> None:
    model = tiny_bert(50)
    batch = {"input_ids": torch.randint(5, 50, (4, 12)), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
    positions = {"start_positions": torch.tensor([0, 3, 11, 5]), "end_positions": torch.tensor([0, 4, 11, 9])}
    outputs = model(**batch, **positions)
    torch.testing.assert_close(qa.loss(outputs, batch | positions).mean(), outputs.loss)
    assert qa.items(batch | positions).tolist() == [1, 1, 1, 1]


# --- reduce ---


def brute_force(start: Any, end: Any, low: int, high: int, made: qa.State) -> list[float]:
    """The best sums of all spans inside [low, high)."""
    sums = [
        float(start[i] + end[j])
        for i in range(low, high)
        for j in range(i, min(i + made.max_answer_length_in_tokens, high))
    ]
    return sorted(sums, reverse=True)[: made.n_best_size]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 2**31), st.integers(1, 24), st.integers(1, 40), st.integers(1, 30), st.booleans())
def test_reduce_finds_the_best_spans(
    data: st.DataObject, seed: int, length: int, n_best: int, longest: int, ties: bool
) -> None:
    generator = np.random.default_rng(seed)
    count = 3
    logits = generator.normal(0, 5, (2, count, length)).astype(np.float32)
    logits = logits.round() if ties else logits
    ranges = [sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length)))) for _ in range(count)]
    inside = np.array([[low <= i < high for i in range(length)] for low, high in ranges])
    tokens = np.arange(length)
    nulls = generator.integers(0, length, count)
    batch = {
        "row": torch.arange(count),
        "null_position": torch.from_numpy(nulls),
        "offset_start": torch.from_numpy(np.where(inside, 2 * tokens, qa.NO_SPAN)),
        "offset_end": torch.from_numpy(np.where(inside, 2 * tokens + 1, qa.NO_SPAN)),
    }
    outputs = {"start_logits": torch.from_numpy(logits[0]), "end_logits": torch.from_numpy(logits[1])}
    made = state(n_best_size=n_best, max_answer_length_in_tokens=longest)
    reduced = {name: tensor.numpy() for name, tensor in qa.reduce(outputs, batch, made).items()}
    for i, (low, high) in enumerate(ranges):
        start, end = logits[:, i]
        real = np.isfinite(reduced["score"][i])
        scores = reduced["score"][i][real]
        assert scores.tolist() == pytest.approx(brute_force(start, end, low, high, made), abs=1e-5)
        firsts, lasts = reduced["start"][i][real] // 2, reduced["end"][i][real] // 2
        assert len(set(zip(firsts.tolist(), lasts.tolist(), strict=True))) == len(scores)
        assert all(low <= f <= last < high and last - f < longest for f, last in zip(firsts, lasts, strict=True))
        assert scores.tolist() == pytest.approx((start[firsts] + end[lasts]).tolist(), abs=1e-5)
        assert reduced["null_score"][i] == pytest.approx(start[nulls[i]] + end[nulls[i]], abs=1e-5)


def test_reduce_is_as_wide_for_every_batch() -> None:
    """Batches of short and of long windows are concatenated, on one process and over several."""
    made = state(n_best_size=20)
    widths = set()
    for length in (4, 19, 20, 60):
        batch = {"row": torch.zeros(1), "null_position": torch.zeros(1, dtype=torch.long)}
        batch |= {name: torch.arange(length)[None] for name in ("offset_start", "offset_end")}
        outputs = {"start_logits": torch.zeros(1, length), "end_logits": torch.zeros(1, length)}
        widths.add(qa.reduce(outputs, batch, made)["score"].shape)
    assert widths == {(1, 20)}


def test_short_and_long_questions_together(tokenizer: Any) -> None:
    rows = [row("a b"), row("a b c d e " * 20), row("c")]
    model = tiny_bert(len(tokenizer))
    together = predict_rows(model, tokenizer, rows, qa.TASK, state(n_best_size=20), batch_size=1)
    alone = [predict_rows(model, tokenizer, [r], qa.TASK, state(n_best_size=20), batch_size=1)[0] for r in rows]
    assert [p["text"] for p in together] == [p["text"] for p in alone]
    assert [p["score"] for p in together] == pytest.approx([p["score"] for p in alone], abs=1e-5)


def test_null_score_is_as_exact_as_the_spans() -> None:
    """In bf16 the sum of two logits is rounded; both sides of the comparison with the threshold must be alike."""
    batch = {"row": torch.zeros(1), "null_position": torch.zeros(1, dtype=torch.long)}
    batch |= {name: torch.arange(2)[None] for name in ("offset_start", "offset_end")}
    logits = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16), torch.tensor([[0.0078125, 0.0]], dtype=torch.bfloat16)
    reduced = qa.reduce({"start_logits": logits[0], "end_logits": logits[1]}, batch, state(n_best_size=1))
    assert reduced["null_score"].item() == reduced["score"].item() == 8.0078125


# --- decode ---


def reduced_windows(*windows: tuple[int, list[tuple[int, int, float]], float]) -> dict[str, Any]:
    """(row, spans of (start, end, score), null score) of each window -> what `reduce` gives."""
    width = max(len(spans) for _, spans, _ in windows)
    filled = [spans + [(-1, -1, -np.inf)] * (width - len(spans)) for _, spans, _ in windows]
    return {
        "row": np.array([number for number, _, _ in windows]),
        "start": np.array([[span[0] for span in spans] for spans in filled]),
        "end": np.array([[span[1] for span in spans] for spans in filled]),
        "score": np.array([[span[2] for span in spans] for spans in filled]),
        "null_score": np.array([null for _, _, null in windows]),
    }


def test_decode_merges_windows() -> None:
    """The best of all windows of a row, equal spans once with the better score, spaces trimmed, rows in any order."""
    windows = reduced_windows(
        (1, [(0, 3, 1.0)], 0.0),
        (0, [(0, 2, 1.0), (3, 5, 0.5)], 9.0),
        (0, [(2, 5, 3.0), (0, 2, 0.0)], 2.0),
    )
    first, second = qa.decode(windows, [row("aa bb"), row("xyz")], state())
    assert (first["text"], first["start"], first["end"]) == ("bb", 3, 5)
    assert [(c["text"], c["start"]) for c in first["n_best"]] == [("bb", 3), ("aa", 0)]
    assert first["null_score"] == 2.0 - 3.0
    weights = np.exp([3.0, 1.0])
    assert [c["score"] for c in first["n_best"]] == pytest.approx(weights / weights.sum())
    assert first["score"] == first["n_best"][0]["score"]
    assert (second["text"], second["score"]) == ("xyz", 1.0)


@pytest.mark.parametrize(
    ("no_answer", "threshold", "text"), [(True, 0.0, ""), (True, 1.0, "aa"), (True, 0.99, ""), (False, 0.0, "aa")]
)
def test_decode_withholds_above_the_threshold(no_answer: bool, threshold: float, text: str) -> None:
    windows = reduced_windows((0, [(0, 2, 3.0)], 8.0), (0, [(3, 5, 1.0)], 4.0))
    (made,) = qa.decode(windows, [row("aa bb")], state(no_answer=no_answer, null_threshold=threshold))
    assert (made["text"], made["null_score"]) == (text, 1.0)
    assert (made["start"], made["end"]) == ((-1, -1) if text == "" else (0, 2))
    assert sum(c["score"] for c in made["n_best"]) == pytest.approx(1)
    assert ("" in [c["text"] for c in made["n_best"]]) == no_answer


def test_decode_keeps_n_best() -> None:
    windows = reduced_windows((0, [(i, i + 1, float(i)) for i in range(5)], 0.0))
    (made,) = qa.decode(windows, [row("abcde")], state(n_best_size=3))
    assert [c["text"] for c in made["n_best"]] == ["e", "d", "c"]


@settings(max_examples=60, deadline=None)
@given(PARAGRAPHS, st.booleans(), st.integers(0, 2**31))
def test_predictions_are_parts_of_the_context(tokenizer: Any, context: str, no_answer: bool, seed: int) -> None:
    """Windows -> random logits -> decode: every candidate stands where it says and is trimmed."""
    made = state(max_seq_length=24, doc_stride=6, no_answer=no_answer)
    windows = as_windows(qa.encode([row(context)], tokenizer, made))
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for batch in batches_by_length(windows, len(windows), qa.padding(tokenizer), "cpu"):
        shape = batch["input_ids"].shape
        logits = {f"{side}_logits": torch.randn(shape, generator=generator) for side in ("start", "end")}
        parts.append({name: tensor.numpy() for name, tensor in qa.reduce(logits, batch, made).items()})
    (prediction,) = qa.decode(parts[0], [row(context)], made)
    assert sum(c["score"] for c in prediction["n_best"]) <= 1 + 1e-6
    scores = [c["score"] for c in prediction["n_best"]]
    assert scores == sorted(scores, reverse=True)
    for candidate in prediction["n_best"]:
        withheld = candidate["start"] == qa.NO_SPAN
        text = "" if withheld else context[candidate["start"] : candidate["end"]]
        assert candidate["text"] == text == text.strip()
        assert (text == "") == withheld
    assert not windows or not context.strip() or prediction["n_best"] or not qa_tokens(tokenizer, context)


def qa_tokens(tokenizer: Any, context: str) -> list[int]:
    ids: list[int] = tokenizer(context, add_special_tokens=False)["input_ids"]
    return ids


def test_predict_gives_loss_only_with_labels(tokenizer: Any) -> None:
    model, rows = tiny_bert(len(tokenizer)), [row("a b c", text="b", start=2)] * 3
    columns = qa.encode(rows, tokenizer, state())
    windows = as_windows(columns | qa.label(rows, columns)[0])
    batches = list(batches_by_length(windows, 2, qa.padding(tokenizer), "cpu"))
    reduced, loss = predict(model, batches, qa.TASK, state(), keep_batches=1)
    assert loss == pytest.approx(qa.loss(forward(model, batches[0], qa.TASK), batches[0]).mean().item(), abs=1e-5)
    assert reduced["row"].tolist() == [0, 1, 2]
    assert predict(model, list(batches_by_length(as_windows(columns), 2, {}, "cpu")), qa.TASK, state(), 1)[1] is None


def test_show_and_serve() -> None:
    (served,) = qa.serve([{"question": "Who?", "context": "It was Ada, in London."}])
    assert served["answers"] is None
    found = {"text": "Ada", "start": 7, "end": 10, "score": 0.5, "null_score": 0.0, "n_best": []}
    assert qa.show(found, served) == "Q: Who?\nA: … It was [[Ada]], in London. …"
    assert "(no answer)" in qa.show({**found, "text": "", "start": -1, "end": -1}, served)
    assert qa.present(found) == {"answer": "Ada", "score": 0.5, "start": 7, "end": 10}


# --- longest_window ---


def test_longest_window(tiny_model: Path) -> None:
    unlimited = AutoTokenizer.from_pretrained(tiny_model)
    assert unlimited.model_max_length >= 1e30
    limited = AutoTokenizer.from_pretrained(tiny_model, model_max_length=100)
    bert = BertConfig(max_position_embeddings=160)
    assert longest_window(bert, unlimited) == 160
    assert longest_window(bert, limited) == 100
    assert longest_window(BertConfig(max_position_embeddings=64), limited) == 64
    assert longest_window(RobertaConfig(max_position_embeddings=514), unlimited) == 512
    t5 = AutoConfig.for_model("t5")
    assert longest_window(t5, unlimited) == 512
    assert longest_window(t5, limited) == 100


@pytest.mark.parametrize(
    "family",
    [
        "bert", "distilbert", "electra", "albert", "roberta", "camembert", "xlm-roberta", "mpnet",
        "data2vec-text", "ibert", "luke", "roberta-prelayernorm", "xmod",
    ],
)  # fmt: skip
def test_models_run_at_their_longest_window(family: str, tiny_model: Path) -> None:
    """A window of that length is in the position table, and one token more is not."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"embedding_size": 16, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "entity_vocab_size": 9}
    extra = {"languages": ["en_XX"], "default_language": "en_XX"} if family == "xmod" else {}
    config = AutoConfig.for_model(family, vocab_size=40, max_position_embeddings=20, **sizes, **extra)
    model = AutoModelForQuestionAnswering.from_config(config).eval()
    length = longest_window(config, AutoTokenizer.from_pretrained(tiny_model))
    assert model(input_ids=torch.full((1, length), 5)).start_logits.shape == (1, length)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, length + 1), 5))


@pytest.mark.parametrize("name", ["squad_v1", "squad_v2"])
def test_real_answers_are_labelled(real_data: Path, tokenizer: Any, name: str) -> None:
    """Every answer of a real file is found in the one window that holds the whole context."""
    with (real_data / name / "smoke" / "validation.jsonl").open(encoding="utf-8") as file:
        given_rows = [json.loads(line) for line in file]
    rows, audit = validated(*given_rows)
    assert (len(rows), audit.problems) == (100, {})
    columns = qa.encode(rows, tokenizer, state_whole())
    labels, lost = qa.label(rows, columns)
    assert lost == set()
    for i, r in enumerate(rows):
        first, last = labels["start_positions"][i], labels["end_positions"][i]
        low, high = columns["offset_start"][i][first], columns["offset_end"][i][last]
        assert not r["answers"]["text"] or r["answers"]["text"][0] in r["context"][low:high]
