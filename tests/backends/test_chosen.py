"""The choice among backends, on figures made up for it, and the table that shows them."""

from typing import Any

import pytest

from finetune.backends.chosen import Measured, best, choose, table

BASE: dict[str, Any] = {"windows_per_second": 10.0, "disk_mb": 90.0, "memory_mb": 400.0, "distance": 0.0}


def measured(name: str, score: float, p50_ms: float, **other: Any) -> Measured:
    return Measured(name=name, score=score, p50_ms=p50_ms, **{**BASE, **other})


TORCH, BF16 = measured("PyTorch FP32", 80.0, 20.0), measured("PyTorch bf16", 80.5, 15.0)
IR, INT8 = measured("OpenVINO FP32", 80.0, 12.0), measured("OpenVINO INT8", 78.5, 4.0)
ROWS = (TORCH, BF16, IR, INT8)


@pytest.mark.parametrize(
    ("max_drop", "target", "chosen", "found", "why"),
    [
        (2.0, None, INT8, True, "the fastest, with 4.0 ms, 1.50 points lower than PyTorch FP32"),
        (1.5, 5.0, INT8, True, "the fastest, with 4.0 ms of at most 5, 1.50 points lower than PyTorch FP32"),
        (1.5, 4.0, INT8, True, "the fastest, with 4.0 ms of at most 4, 1.50 points lower than PyTorch FP32"),
        (1.5, 3.9, INT8, False, "4.0 ms, not 3.9, 1.50 points lower than PyTorch FP32"),
        (
            1.0,
            None,
            IR,
            True,
            "the fastest, with 12.0 ms, no point lower than PyTorch FP32; left out for more than 1: "
            "OpenVINO INT8 (1.50 points lower)",
        ),
        (
            1.0,
            5.0,
            IR,
            False,
            "12.0 ms, not 5, no point lower than PyTorch FP32; left out for more than 1: "
            "OpenVINO INT8 (1.50 points lower)",
        ),
    ],
)
def test_the_fastest_that_keeps_the_score(
    max_drop: float, target: float | None, chosen: Measured, found: bool, why: str
) -> None:
    choice = choose(ROWS, max_drop, target)
    assert (choice.row, choice.found, choice.why) == (chosen, found, why)


def test_a_better_score_is_no_loss() -> None:
    choice = choose((TORCH, BF16), 0.0, None)
    assert choice.row is BF16 and choice.why == "the fastest, with 15.0 ms, 0.50 points higher than PyTorch FP32"


def test_pytorch_itself_may_be_the_fastest() -> None:
    choice = choose((TORCH, measured("OpenVINO FP32", 80.0, 21.0)), 0.0, None)
    assert choice.row is TORCH and choice.why == "the fastest, with 20.0 ms"


def test_the_model_that_is_written() -> None:
    """The fastest that keeps the score, or that which loses least."""
    assert best((IR, INT8), TORCH, 1.5) is INT8
    assert best((IR, INT8), TORCH, 1.0) is IR
    assert best((measured("OpenVINO FP32", 70.0, 12.0), INT8), TORCH, 1.0) is INT8


def test_the_table() -> None:
    rows = (TORCH, measured("OpenVINO INT8", 79.126, 4.04, memory_mb=None, distance=0.0312))
    assert table(rows, "f1") == [
        "backend           f1    ms  windows/s  disk MB  memory MB  logits differ",
        "PyTorch FP32   80.00  20.0       10.0     90.0        400        0.0e+00",
        "OpenVINO INT8  79.13   4.0       10.0     90.0          ?        3.1e-02",
    ]
