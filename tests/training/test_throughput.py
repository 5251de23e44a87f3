"""Which windows and which seconds count for the speed of training."""

import time
from typing import Any

import pytest
import torch
from transformers import TrainerState

from finetune.training.throughput import Throughput


@pytest.mark.parametrize(
    ("warmup", "seconds", "windows"),
    [(0, 1 + 5 + 2 + 2, 12), (1, 5 + 2 + 2, 9), (2, 2 + 2, 6), (4, 10, 12)],
    ids=["all", "without 1", "without 2", "none would be left"],
)
def test_counts(monkeypatch: pytest.MonkeyPatch, warmup: int, seconds: float, windows: int) -> None:
    """Four steps of 1, 5, 2 and 2 seconds and three windows each, an evaluation of 100 seconds after the third."""
    clock = 50.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    found, state, none = Throughput(warmup, torch.device("cpu")), TrainerState(max_steps=4), None
    clock += 7  # before training begins
    found.on_train_begin(none, state, none)
    for step, took in enumerate((1, 5, 2, 2), start=1):
        found.count({"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])})
        clock += took
        state.global_step = step
        found.on_step_end(none, state, none)
        if step == 3:
            clock += 100
            found.evaluation_seconds += 100
    rates: dict[str, Any] = found.rates(lambda tensor: tensor)
    assert rates["train_seconds"] == seconds
    assert rates["train_samples_per_second"] == pytest.approx(windows / seconds)
    assert rates["train_tokens_per_second"] == pytest.approx(2 * windows / seconds)
    assert found.without_warmup == (0 < warmup < 4)
