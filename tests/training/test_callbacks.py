"""What the Trainer does beside training; its loss is in tests/invariant."""

from typing import Any

import pytest
from transformers import TrainerState, TrainingArguments

from finetune.training import callbacks


def test_freed_memory_is_returned_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = []
    state = TrainerState()
    monkeypatch.setattr(callbacks, "return_freed_memory", lambda: returned.append(state.global_step))
    callback = callbacks.ReturnMemory()
    for state.global_step in range(1, 121):
        callback.on_step_end(None, state, None)
    assert returned == [*range(10, 121, 10)]


@pytest.mark.parametrize(
    ("given", "mends"),
    [
        ({}, "a lower --learning_rate"),
        ({"max_grad_norm": 0.0}, "a lower --learning_rate, or --max_grad_norm 1"),
        ({"bf16": True}, "a lower --learning_rate, or --precision 32"),
        ({"max_grad_norm": 0.0, "fp16": True}, "a lower --learning_rate, or --max_grad_norm 1, or --precision bf16"),
    ],
    ids=str,
)
def test_what_mends_a_run_is_not_what_it_does_already(given: dict[str, Any], mends: str) -> None:
    """In place of TrainingArguments of a GPU, which fp16 needs."""
    args = TrainingArguments(output_dir="out", use_cpu=True)
    for name, value in given.items():
        setattr(args, name, value)
    assert callbacks.what_mends(args) == mends
