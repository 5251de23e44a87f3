"""Steps of a run, smaller batches, and cadences that can't be."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.core.errors import ParameterError
from finetune.training.schedule import schedule, with_smaller_batch, without_effect_here
from tests.params.test_rules import finetune_params

STEPS: dict[str, Any] = {"evaluation_strategy": "steps"}


def test_steps() -> None:
    params = finetune_params(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=3)
    found = schedule(params, windows=101, processes=2)
    # 101 windows are 13 batches on each of two devices, and those 7 steps.
    assert (found.steps_per_epoch, found.total_steps, found.evaluation_steps, found.global_batch) == (7, 21, 7, 16)


@pytest.mark.parametrize(("interval", "steps"), [(0.5, 5), (0.25, 2), (0.34, 3), (0.01, 1), (1.0, 10)], ids=str)
def test_interval_is_rounded_to_whole_steps(interval: float, steps: int) -> None:
    params = finetune_params(**STEPS, evaluation_steps_interval=interval, eval_steps=3)
    assert schedule(params, windows=10, processes=1).evaluation_steps == steps


def test_an_evaluation_has_to_fall_into_the_run() -> None:
    with pytest.raises(
        ParameterError, match=r"the run has 10 steps, and an evaluation comes every 11[\s\S]*fix: --eval_steps 5"
    ):
        schedule(finetune_params(**STEPS, eval_steps=11), windows=10, processes=1)
    schedule(finetune_params(**STEPS, eval_steps=10), windows=10, processes=1)
    schedule(finetune_params(max_steps=3), windows=10, processes=1)  # an epoch that is cut short is evaluated too


def test_all_faults_of_a_cadence_at_once() -> None:
    with pytest.raises(ParameterError) as raised:
        schedule(finetune_params(**STEPS, eval_steps=11, throughput_warmup_steps=10), windows=10, processes=1)
    assert len(raised.value.faults) == 2
    assert "--throughput_warmup_steps 10 leaves out all 10 steps" in str(raised.value)


def sizes(batch: int, accumulation: int, keep: bool) -> list[tuple[int, int]]:
    """Every try of auto_find_batch_size."""
    params = finetune_params(
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        auto_find_batch_size=True,
        keep_global_batch_size=keep,
    )
    found = [params]
    while found[-1].per_device_train_batch_size > 1:
        found.append(with_smaller_batch(found[-1]))
    return [(p.per_device_train_batch_size, p.gradient_accumulation_steps) for p in found]


def test_batches_are_halved() -> None:
    assert sizes(8, 3, keep=False) == [(8, 3), (4, 3), (2, 3), (1, 3)]
    assert sizes(8, 1, keep=True) == [(8, 1), (4, 2), (2, 4), (1, 8)]
    assert sizes(12, 2, keep=True) == [(12, 2), (6, 4), (3, 8), (1, 24)]
    assert sizes(7, 1, keep=False) == [(7, 1), (3, 1), (1, 1)]


@given(batch=st.integers(1, 200), accumulation=st.integers(1, 8))
def test_a_step_keeps_its_windows(batch: int, accumulation: int) -> None:
    found = sizes(batch, accumulation, keep=True)
    assert {size * times for size, times in found} == {batch * accumulation}
    assert all(after <= before // 2 for (before, _), (after, _) in pairwise(found))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"logging_strategy": "steps", "logging_steps": 11}, "logging_steps 11 is more than the run's 10"),
        ({"warmup_steps": 10}, "warmup_steps 10 of 10: the learning rate is never reached"),
        ({"apply_early_stopping": True}, "early_stopping_patience 1 can't run out in 1 evaluations"),
    ],
)
def test_what_never_comes_to_pass_is_said(changed: dict[str, Any], line: str) -> None:
    params = finetune_params(**changed)
    (found,) = without_effect_here(params, schedule(params, windows=10, processes=1))
    assert found.startswith(line)


def test_nothing_to_say_of_defaults() -> None:
    assert without_effect_here(finetune_params(), schedule(finetune_params(), windows=10, processes=1)) == []
