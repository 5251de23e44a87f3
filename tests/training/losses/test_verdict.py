"""Which step is wrong, by what processes have told; without processes."""

import math

import pytest

from finetune.training.losses.verdict import LONGEST, SHORTEST, Record, Seen, Wrong

NAN, INF = math.nan, math.inf


def seen(losses: dict[int, float], norms: dict[int, float] | None = None, weights: bool = True) -> Seen:
    return Seen([*losses.items()], [*(norms or {}).items()], weights)


@pytest.mark.parametrize(
    ("told", "step", "by", "suspects"),
    [
        ([seen({1: 1.0, 2: NAN, 3: NAN}, {1: 1.0, 2: NAN, 3: NAN})], 2, "loss", (1, 2)),
        ([seen({1: 1.0, 2: 1.0}), seen({1: 1.0, 2: INF})], 2, "loss", (1, 2)),  # another process
        ([seen({1: -INF, 2: 1.0})], 1, "loss", (1,)),
        ([seen({1: 1.0, 2: 1.0, 3: NAN}, {1: 1.0, 2: INF, 3: NAN})], 2, "gradient", (2,)),
        ([seen({1: NAN, 2: NAN}), seen({1: 1.0, 2: 1.0}, {1: NAN})], 1, "loss", (1,)),
        ([seen({1: 1.0}, {1: 1.0}), seen({1: 1.0}, {1: 1.0}, weights=False)], 3, "weights", (3,)),
    ],
)
def test_what_is_not_finite(told: list[Seen], step: int, by: str, suspects: tuple[int, ...]) -> None:
    """The first step counts, and in it the loss before the gradient that follows from it."""
    wrong = Record().judge(told, 3, 0.0)
    assert wrong is not None and (wrong.step, wrong.by, wrong.suspects) == (step, by, suspects)
    assert f"step {step}" in wrong.what


def test_a_spike_is_many_times_the_median() -> None:
    """Of the mean over all batches and processes, once there are enough steps before it; and more is no spike."""
    usual = {step: 0.5 if step % 2 else 1.5 for step in range(1, SHORTEST + 1)}  # of each of two processes: median 2
    record = Record()
    assert record.judge([seen(usual), seen(usual)], SHORTEST, 4.0) is None
    assert record.before == [2 * loss for loss in usual.values()]
    limit = seen({SHORTEST + 1: 4.0})
    assert record.judge([limit, limit], SHORTEST + 1, 4.0) is None  # 8 is 4 times 2
    above = seen({SHORTEST + 2: 4.01})
    assert record.judge([above, above], SHORTEST + 2, 0.0) is None
    del record.before[-2:]
    wrong = record.judge([above, above], SHORTEST + 2, 4.0)
    assert wrong == Wrong(SHORTEST + 2, wrong.what if wrong else "", "spike") and wrong.suspects == (21, 22)
    assert "the loss of step 22 is 8.02, 4.0 times the median of the 20 steps before" in wrong.what


def test_few_steps_are_no_measure() -> None:
    record = Record()
    assert record.judge([seen(dict.fromkeys(range(1, SHORTEST), 1.0) | {SHORTEST: 1e9})], SHORTEST, 2.0) is None
    assert record.judge([seen({SHORTEST + 1: 1e9})], SHORTEST + 1, 2.0) is not None


def test_old_losses_are_forgotten() -> None:
    record = Record()
    record.judge([seen(dict.fromkeys(range(1, 101), 8.0))], 100, 2.0)
    record.judge([seen(dict.fromkeys(range(101, 101 + LONGEST), 1.0))], 150, 2.0)
    assert record.before == [1.0] * LONGEST
    wrong = record.judge([seen({151: 3.0})], 151, 2.0)
    assert wrong is not None and wrong.by == "spike"


def test_a_step_that_is_left_out_is_no_measure_and_no_spike() -> None:
    record = Record([1.0] * SHORTEST, [30])
    assert record.judge([seen({29: 1.0, 31: 1.0}, {29: 1.0, 30: 0.0, 31: 1.0})], 31, 2.0) is None
    assert record.before == [1.0] * (SHORTEST + 2)


def test_what_was_left_out_stays_so() -> None:
    """From attempt to attempt, from checkpoint to checkpoint; the losses are those of the checkpoint."""
    first = Record([1.0, 2.0]).without(Wrong(7, "", "spike"))
    assert first == Record([], [6, 7], 1)
    again = first.without(Wrong(9, "", "gradient"))
    again.resume(Record([3.0], [2], 1).stored())
    assert again == Record([3.0], [2, 6, 7, 9], 2)
