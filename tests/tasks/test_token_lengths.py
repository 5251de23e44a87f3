"""Token lengths of a sample: against a plain tokenizer."""

from pathlib import Path
from typing import Any

import pytest

from finetune.models.stored.tokenizers import load_tokenizer
from finetune.tasks import load_task, token_lengths
from finetune.tasks.question_answering import TASK
from tests.conftest import sample_rows
from tests.tasks.question_answering.conftest import state, validated


@pytest.fixture
def sampled(tiny_model: Path) -> tuple[list[dict[str, Any]], Any]:
    rows, _ = validated(*sample_rows("train")[:80])
    return rows, load_tokenizer(tiny_model, load_task("question_answering"))


def test_lengths_of_rows_and_windows(sampled: tuple[list[dict[str, Any]], Any]) -> None:
    rows, tokenizer = sampled
    found = token_lengths.measure(
        rows, TASK, tokenizer, state(max_seq_length=64, doc_stride=16, pad_to_max_length=True)
    )
    plain = sorted(len(tokenizer(row["question"], row["context"])["input_ids"]) for row in rows)
    assert sorted(found.rows) == plain
    assert found.windowed == sum(length > 64 for length in plain) > 0
    encoded = TASK.data.encode(rows, tokenizer, state(max_seq_length=64, doc_stride=16))
    assert sorted(found.windows) == sorted(map(len, encoded["input_ids"]))
    assert found.expected_windows == len(encoded["row"])
    assert found.lost == len(TASK.data.label(rows, encoded, state())[1])


def test_a_seeded_sample_of_many_rows(
    sampled: tuple[list[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, tokenizer = sampled
    monkeypatch.setattr(token_lengths, "SAMPLE", 30)
    first, second = (token_lengths.measure(rows, TASK, tokenizer, state()) for _ in range(2))
    assert first == second
    assert (len(first.rows), first.total) == (30, 80)
    assert first.expected_windows == round(len(first.windows) * 80 / 30)
    assert "30 of 80 rows, seed 0" in token_lengths.describe(first, 64)[0]


def test_a_question_too_long_is_measured_and_lost(sampled: tuple[list[dict[str, Any]], Any]) -> None:
    rows, tokenizer = sampled
    long = {**rows[0], "question": "what " * 200}
    found = token_lengths.measure([long, rows[0]], TASK, tokenizer, state(max_seq_length=160))
    assert max(found.rows) > 200
    assert found.lost == 1
    (lost,) = found.reasons
    assert f"  50.0%: {lost.reason}" in token_lengths.describe(found, 160)
    assert len(found.windows) == len(TASK.data.encode(rows[:1], tokenizer, state(max_seq_length=160))["row"])


def test_windows_that_are_encoded_tell_the_same(sampled: tuple[list[dict[str, Any]], Any]) -> None:
    rows, tokenizer = sampled
    long = {**rows[0], "context": " ".join([rows[0]["context"]] * 9)}
    rows, limit = [*rows, long], 64
    made = state(max_seq_length=limit, doc_stride=16, pad_to_max_length=True)
    columns = TASK.data.encode(rows, tokenizer, made)
    tokens = [int(sum(mask)) for mask in columns["attention_mask"]]
    found = token_lengths.of_windows(columns["row"], tokens, 0, limit)
    sample = token_lengths.measure(rows, TASK, tokenizer, made)
    assert sorted(found.rows) == sorted(min(count, limit + 1) for count in sample.rows)
    assert (sorted(found.windows), found.windowed) == (sorted(sample.windows), sample.windowed)
    assert max(sample.rows) > limit + 1
    assert token_lengths.describe(found, limit)[1:-1] == token_lengths.describe(sample, limit)[1:-1]
    assert token_lengths.describe(found, limit)[0].endswith(f"longest over {limit}")


def test_histogram() -> None:
    lines = token_lengths.histogram([1, 10, 11, 80, 80, 80, 81, 500], 80)
    assert [line.split()[0] for line in lines] == [
        "1-10", "11-20", "21-30", "31-40", "41-50", "51-60", "61-70", "71-80", "over",
    ]  # fmt: skip
    assert [line.split()[-1] for line in lines] == [
        "25.0%", "12.5%", "0.0%", "0.0%", "0.0%", "0.0%", "0.0%", "37.5%", "25.0%",
    ]  # fmt: skip
    assert lines[7].count("█") == token_lengths.BAR_WIDTH
    assert len(token_lengths.histogram([3, 4], 100)) == 1
    assert "over 0" in token_lengths.histogram([5], 0)[0]
    ragged = token_lengths.histogram([95, 96, 97], 96 + 1)
    assert ragged[-1].split()[0] == "92-97"
