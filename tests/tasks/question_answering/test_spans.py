"""Loss, the best spans and their decoding."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.batches import as_windows, batches_by_length, collate
from finetune.models.prediction import predict, predict_rows
from finetune.tasks.answering import forward
from finetune.tasks.question_answering import TASK
from finetune.tasks.question_answering import objective as qa_objective
from finetune.tasks.question_answering import rows as qa_rows
from finetune.tasks.question_answering import spans as qa_spans
from finetune.tasks.question_answering import windows as qa_windows
from tests.tasks.question_answering.conftest import PARAGRAPHS, row, state, tiny_bert


def test_loss_does_not_see_padding(tokenizer: Any) -> None:
    model = tiny_bert(len(tokenizer))
    rows = [row("a b c d", text="b c", start=2), row("a b c d e " * 8, text="d e", start=26)]
    columns = qa_windows.encode(rows, tokenizer, state(max_seq_length=200))
    windows = as_windows(columns | qa_windows.label(rows, columns, state())[0])
    padding = qa_windows.padding(tokenizer)

    def losses(*chosen: dict[str, Any]) -> torch.Tensor:
        batch = collate(chosen, padding)
        return qa_objective.loss(forward(model, batch, TASK.model.inputs), batch)

    alone = torch.cat([losses(window) for window in windows])
    torch.testing.assert_close(losses(*windows), alone, atol=1e-5, rtol=1e-5)


def test_loss_is_that_of_transformers_without_padding() -> None:
    model = tiny_bert(50)
    batch = {"input_ids": torch.randint(5, 50, (4, 12)), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
    positions = {"start_positions": torch.tensor([0, 3, 11, 5]), "end_positions": torch.tensor([0, 4, 11, 9])}
    outputs = model(**batch, **positions)
    torch.testing.assert_close(qa_objective.loss(outputs, batch | positions).mean(), outputs.loss)
    assert qa_objective.items(batch | positions).tolist() == [1, 1, 1, 1]


# --- reduce ---


def brute_force(start: Any, end: Any, low: int, high: int, made: qa_windows.State) -> list[float]:
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
        "offset_start": torch.from_numpy(np.where(inside, 2 * tokens, qa_windows.NO_SPAN)),
        "offset_end": torch.from_numpy(np.where(inside, 2 * tokens + 1, qa_windows.NO_SPAN)),
    }
    outputs = {"start_logits": torch.from_numpy(logits[0]), "end_logits": torch.from_numpy(logits[1])}
    made = state(n_best_size=n_best, max_answer_length_in_tokens=longest)
    reduced = {name: tensor.numpy() for name, tensor in qa_spans.reduce(outputs, batch, made).items()}
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
        widths.add(qa_spans.reduce(outputs, batch, made)["score"].shape)
    assert widths == {(1, 20)}


def test_short_and_long_questions_together(tokenizer: Any) -> None:
    rows = [row("a b"), row("a b c d e " * 20), row("c")]
    model = tiny_bert(len(tokenizer))
    together = predict_rows(model, tokenizer, rows, TASK, state(n_best_size=20), batch_size=1)
    alone = [predict_rows(model, tokenizer, [r], TASK, state(n_best_size=20), batch_size=1)[0] for r in rows]
    assert [p["text"] for p in together] == [p["text"] for p in alone]
    assert [p["score"] for p in together] == pytest.approx([p["score"] for p in alone], abs=1e-5)


def test_null_score_is_as_exact_as_the_spans() -> None:
    """In bf16 the sum of two logits is rounded; both sides of the comparison with the threshold must be alike."""
    batch = {"row": torch.zeros(1), "null_position": torch.zeros(1, dtype=torch.long)}
    batch |= {name: torch.arange(2)[None] for name in ("offset_start", "offset_end")}
    logits = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16), torch.tensor([[0.0078125, 0.0]], dtype=torch.bfloat16)
    reduced = qa_spans.reduce({"start_logits": logits[0], "end_logits": logits[1]}, batch, state(n_best_size=1))
    assert reduced["null_score"].item() == reduced["score"].item() == 8.0078125


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
    first, second = qa_spans.decode(windows, [row("aa bb"), row("xyz")], state())
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
    (made,) = qa_spans.decode(windows, [row("aa bb")], state(no_answer=no_answer, null_threshold=threshold))
    assert (made["text"], made["null_score"]) == (text, 1.0)
    assert (made["start"], made["end"]) == ((-1, -1) if text == "" else (0, 2))
    assert sum(c["score"] for c in made["n_best"]) == pytest.approx(1)
    assert ("" in [c["text"] for c in made["n_best"]]) == no_answer


def test_decode_keeps_n_best() -> None:
    windows = reduced_windows((0, [(i, i + 1, float(i)) for i in range(5)], 0.0))
    (made,) = qa_spans.decode(windows, [row("abcde")], state(n_best_size=3))
    assert [c["text"] for c in made["n_best"]] == ["e", "d", "c"]


@settings(max_examples=60, deadline=None)
@given(PARAGRAPHS, st.booleans(), st.integers(0, 2**31))
def test_predictions_are_parts_of_the_context(tokenizer: Any, context: str, no_answer: bool, seed: int) -> None:
    """Windows -> random logits -> decode: every candidate stands where it says and is trimmed."""
    every = 24 * 24  # spans of a window: the few best may be white space, where that has tokens of its own
    made = state(max_seq_length=24, doc_stride=6, no_answer=no_answer, n_best_size=every)
    windows = as_windows(qa_windows.encode([row(context)], tokenizer, made))
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for batch in batches_by_length(windows, len(windows), qa_windows.padding(tokenizer), "cpu"):
        shape = batch["input_ids"].shape
        logits = {f"{side}_logits": torch.randn(shape, generator=generator) for side in ("start", "end")}
        parts.append({name: tensor.numpy() for name, tensor in qa_spans.reduce(logits, batch, made).items()})
    (prediction,) = qa_spans.decode(parts[0], [row(context)], made)
    assert sum(c["score"] for c in prediction["n_best"]) <= 1 + 1e-6
    scores = [c["score"] for c in prediction["n_best"]]
    assert scores == sorted(scores, reverse=True)
    for candidate in prediction["n_best"]:
        withheld = candidate["start"] == qa_windows.NO_SPAN
        text = "" if withheld else context[candidate["start"] : candidate["end"]]
        assert candidate["text"] == text == text.strip()
        assert (text == "") == withheld
    assert not windows or not context.strip() or prediction["n_best"] or not qa_tokens(tokenizer, context)


def qa_tokens(tokenizer: Any, context: str) -> list[int]:
    ids: list[int] = tokenizer(context, add_special_tokens=False)["input_ids"]
    return ids


def test_predict_gives_loss_only_with_labels(tokenizer: Any) -> None:
    model, rows = tiny_bert(len(tokenizer)), [row("a b c", text="b", start=2)] * 3
    columns = qa_windows.encode(rows, tokenizer, state())
    windows = as_windows(columns | qa_windows.label(rows, columns, state())[0])
    batches = list(batches_by_length(windows, 2, qa_windows.padding(tokenizer), "cpu"))
    reduced, loss = predict(model, batches, TASK, state(), keep_batches=1)
    assert loss == pytest.approx(
        qa_objective.loss(forward(model, batches[0], TASK.model.inputs), batches[0]).mean().item(), abs=1e-5
    )
    assert reduced["row"].tolist() == [0, 1, 2]
    assert predict(model, list(batches_by_length(as_windows(columns), 2, {}, "cpu")), TASK, state(), 1)[1] is None


def test_show_and_serve() -> None:
    (served,) = qa_rows.serve([{"question": "Who?", "context": "It was Ada, in London."}])
    assert served["answers"] is None
    found = {"text": "Ada", "start": 7, "end": 10, "score": 0.5, "null_score": 0.0, "n_best": []}
    assert qa_spans.show(found, served) == "Q: Who?\nA: … It was [[Ada]], in London. …"
    assert "(no answer)" in qa_spans.show({**found, "text": "", "start": -1, "end": -1}, served)
    assert qa_spans.present(found) == {"answer": "Ada", "score": 0.5, "start": 7, "end": 10}


# --- rounding ---


def test_rounding_flips_no_row_at_the_calibrated_threshold() -> None:
    """The sweep's own threshold is the null score of a row: 1e-6 more, and its answer is withheld."""
    rows = [row("aa bb", text="aa"), row("aa bb"), row("cc", text="cc")]

    def answers(shift: float, made: qa_windows.State) -> list[dict[str, Any]]:
        nulls = (1.0, 3.0, 0.5)
        windows = [(i, [(0, 2, 2.0)], 2.0 + null + shift) for i, null in enumerate(nulls)]
        return qa_spans.decode(reduced_windows(*windows), rows, made)

    metrics = qa_spans.metrics(answers(0, state(no_answer=True)), rows, state(no_answer=True))
    assert (metrics["best_f1"], metrics["best_f1_thresh"]) == (100, 1.0)
    calibrated = qa_spans.calibrate(metrics, state(no_answer=True))
    assert calibrated.null_threshold == 2.0
    for shift in (-1e-6, 0, 1e-6):
        found = answers(shift, calibrated)
        assert [p["text"] for p in found] == ["aa", "", "cc"]
        assert qa_spans.metrics(found, rows, calibrated)["f1"] == 100
    assert qa_spans.calibrate({"f1": 3.0}, calibrated) == calibrated


def asked(
    *scores: float, null: float = -9.0, threshold: float = 0.0, n_best: int = 2
) -> tuple[dict[str, Any], qa_windows.State]:
    """(prediction of a model that gives the letters of "abcd" these scores, the state)."""
    made = state(no_answer=True, null_threshold=threshold, n_best_size=n_best)
    spans = [(i, i + 1, score) for i, score in enumerate(scores)]
    return qa_spans.decode(reduced_windows((0, spans, null)), [row("abcd")], made)[0], made


@pytest.mark.parametrize(
    ("expected", "got", "alike"),
    [
        (asked(2.0, 1.9999), asked(1.9999, 2.0), True),
        (asked(2.0, 1.99), asked(1.99, 2.0), False),
        (asked(2.0, 1.99, 1.98), asked(1.98, 1.99, 2.0), False),  # none of the n best, of which the last is beaten
        (asked(2.0, 2.0, 2.0), asked(1.9999, 1.9999, 2.0), True),  # none of the n best, which all tie
        (asked(2.0, 1.0, null=2.0001), asked(2.0001, 1.0, null=2.0), True),  # at the threshold
        (asked(2.0, 1.0, null=2.01), asked(2.01, 1.0, null=2.0), False),
        (asked(2.0, 1.0, null=2.0, threshold=0.5), asked(2.0, 1.0, null=2.0, threshold=-0.5), False),  # saved otherwise
        (asked(2.0, 1.0, null=7.0001, threshold=5.0), asked(2.0001, 1.0, null=7.0, threshold=5.0), True),
        (asked(2.0, null=2.0001, n_best=1), asked(2.0001, null=2.0, n_best=1), True),
        (asked(2.0, 1.9999, n_best=1), asked(1.9999, 2.0, n_best=1), False),  # nobody knows how close that was
        (asked(2.0, 1.0), asked(2.0, 1.9), False),  # the same answer with another score
        (asked(-np.inf), asked(2.0), False),
        # The null answer takes all the probability: spans are compared with one another all the same.
        (asked(2.0, 1.0, null=30.0, threshold=99.0), asked(1.0, 2.0, null=30.0, threshold=99.0), False),
    ],
)
def test_ties(expected: Any, got: Any, alike: bool) -> None:
    prediction, made = expected
    served = qa_spans.present(got[0])
    assert served != qa_spans.present(prediction)
    assert qa_spans.tied(prediction, served, made, 1e-3) == alike
