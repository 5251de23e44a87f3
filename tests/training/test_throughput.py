"""Which windows and which seconds count for the speed of training."""

import time
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, Trainer, TrainerState

from finetune.training import throughput
from finetune.training.throughput import Throughput
from finetune.training.trainer import FinetuneTrainer


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


def test_parts_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start of the process on; what one part held of another is counted as that."""
    parts = throughput.Parts()
    assert 0 < time.time() - parts.began < 7200  # this process began before it
    parts.began = parts.since = 1000.0
    clock = iter([1008.0, 1128.0, 1130.4])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    parts.done("start")
    parts.done("load")
    parts.move(90, "load", "train")
    parts.move(20, "load", "validate")
    parts.done("save")
    assert str(parts) == "start 8 s, load 10 s, train 90 s, validate 20 s, save 2 s; 130 s in all"


def test_operations_of_a_step_are_those_that_transformers_counts() -> None:
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    trainer = object.__new__(FinetuneTrainer)
    trainer.model = BertForQuestionAnswering(config)
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.int64)}
    for _ in range(2):
        assert trainer.floating_point_ops(batch) == Trainer.floating_point_ops(trainer, batch) > 0
