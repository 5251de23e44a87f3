"""What the Trainer does beside training; its loss is in tests/invariant."""

import pytest
from transformers import TrainerState

from finetune.training import callbacks


def test_freed_memory_is_returned_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = []
    state = TrainerState()
    monkeypatch.setattr(callbacks, "return_freed_memory", lambda: returned.append(state.global_step))
    callback = callbacks.ReturnMemory()
    for state.global_step in range(1, 121):
        callback.on_step_end(None, state, None)
    assert returned == [*range(10, 121, 10)]
