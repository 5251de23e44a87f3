"""SQuAD metrics: the numbers of the official scripts, and the rules one by one."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from finetune.tasks.question_answering.metrics import (
    amid,
    best_threshold,
    f1_score,
    normalize_answer,
    official,
    squad_scores,
)


def score(predictions: list[tuple[str, float]], golds: list[list[str]]) -> dict[str, Any]:
    return official(({"text": text, "span_text": text, "null_score": null} for text, null in predictions), golds)


@pytest.mark.parametrize(
    ("system", "data", "splits"),
    [
        ("squad_v1_logistic_regression", "squad_v1", ("validation", "test")),
        ("squad_v1_match_lstm", "squad_v1", ("validation", "test")),
        ("squad_v2_bidaf_elmo", "squad_v2", ("train", "validation", "test")),
        ("squad_v2_threshold", "squad_v2", ("train", "validation", "test")),
    ],
)
def test_equal_to_the_official_scripts(real_data: Path, system: str, data: str, splits: tuple[str, ...]) -> None:
    def read(kind: str) -> dict[str, Any]:
        path = real_data / "oracle" / f"{system}.{kind}.json"
        values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return values

    tables = [pyarrow.parquet.read_table(real_data / data / f"{split}.parquet") for split in splits]
    rows = [row for table in tables for row in table.select(["id", "answers"]).to_pylist()]
    texts, null = read("predictions"), read("na_prob")
    result = score(
        [(texts.get(row["id"], ""), null.get(row["id"], 0.0)) for row in rows], [row["answers"]["text"] for row in rows]
    )
    expected = read("expected")
    assert len(expected) in (2, 9, 13)
    for name, value in expected.items():
        assert result[name.replace("exact_match", "exact")] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Quick, brown-fox!", "quick brownfox"),
        ("a an the", ""),
        ("Another theory", "another theory"),
        ("U.S.A.", "usa"),
        ("\tÉcole\u00a0 d’été\n", "école d’été"),
        ("...", ""),
    ],
)
def test_normalize(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("golds", "predicted", "expected"),
    [
        (["The cat."], "cat", (1.0, 1.0)),
        (["black cat"], "cat", (0.0, 2 / 3)),
        (["cat cat dog"], "cat dog dog", (0.0, 2 / 3)),
        (["cat"], "dog", (0.0, 0.0)),
        (["cat"], "", (0.0, 0.0)),
        (["dog", "black cat", "cat food"], "black cat", (1.0, 1.0)),
        (["big dog", "a small dog there"], "small dog", (0.0, 0.8)),
        ([], "", (1.0, 1.0)),
        ([], "the", (1.0, 1.0)),
        ([], "cat", (0.0, 0.0)),
        (["the", "..."], "", (1.0, 1.0)),
        (["the", "cat"], "", (0.0, 0.0)),
    ],
)
def test_squad_scores(golds: list[str], predicted: str, expected: tuple[float, float]) -> None:
    assert squad_scores(golds, predicted) == pytest.approx(expected)


def test_f1_is_symmetric() -> None:
    assert f1_score("one two three", "two four") == f1_score("two four", "one two three") == pytest.approx(0.4)


def test_all_answerable_has_no_thresholds() -> None:
    result = score([("cat", 0.0), ("black dog", 0.0)], [["cat"], ["dog"]])
    assert result == pytest.approx(
        {
            "exact": 50, "f1": 100 * (1 + 2 / 3) / 2, "total": 2,
            "HasAns_exact": 50, "HasAns_f1": 100 * (1 + 2 / 3) / 2, "HasAns_total": 2,
        }
    )  # fmt: skip


def test_unanswerable_rows() -> None:
    """Answers with a null score up to 1 are let through: one right answer more, one withheld."""
    result = score([("cat", 1.0), ("dog", 2.0), ("", 0.0)], [["cat"], [], []])
    assert result == pytest.approx(
        {
            "exact": 200 / 3, "f1": 200 / 3, "total": 3,
            "HasAns_exact": 100, "HasAns_f1": 100, "HasAns_total": 1,
            "NoAns_exact": 50, "NoAns_f1": 50, "NoAns_total": 2,
            "best_exact": 100, "best_exact_thresh": 1.0, "best_f1": 100, "best_f1_thresh": 1.0,
        }
    )  # fmt: skip


def test_only_unanswerable_rows() -> None:
    result = score([("cat", -3.0)], [[]])
    assert (result["exact"], result["best_exact"]) == (0, 100)
    assert result["best_exact_thresh"] < -3.0  # every answer is withheld
    assert "HasAns_total" not in result


def test_negative_threshold() -> None:
    scores, null, has_answer = [1.0, 0.0], [-5.0, -1.0], [True, False]
    assert best_threshold(scores, null, has_answer, answered=[True, True]) == (100.0, -5.0)


def test_first_of_equal_thresholds() -> None:
    scores, null, has_answer = [1.0, 0.0, 1.0], [1.0, 2.0, 3.0], [True, False, True]
    best, threshold = best_threshold(scores, null, has_answer, answered=[True, True, True])
    assert (best, threshold) == (pytest.approx(200 / 3), 1.0)


@pytest.mark.parametrize(
    ("threshold", "expected"), [(-5.0, -3.0), (-1.0, 1.0), (-2.0, -3.0), (3.0, 4.0), (7.0, 4.0), (-9.0, -6.0)]
)
def test_amid_the_values(threshold: float, expected: float) -> None:
    """Between the last value that is let through and the next; 1 below or above all."""
    assert amid([3.0, -5.0, -1.0, -5.0], threshold) == expected
