"""What the Trainer does beside training; its loss is in tests/invariant."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from finetune.core.errors import ModelError
from finetune.training import callbacks


def test_freed_memory_is_returned_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = []
    state = TrainerState()
    monkeypatch.setattr(callbacks, "return_freed_memory", lambda: returned.append(state.global_step))
    callback = callbacks.ReturnMemory()
    for state.global_step in range(1, 121):
        callback.on_step_end(None, state, None)
    assert returned == [*range(10, 121, 10)]


class Words:
    """A tokenizer whose words are numbers."""

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in ids.tolist()]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_first_batch_without_a_finite_loss_is_named(accumulation: int) -> None:
    """By its step and its texts, when the losses are read next."""
    watch = callbacks.WatchLoss(evaluation_steps=100, tokenizer=Words())
    args, state, control = SimpleNamespace(gradient_accumulation_steps=accumulation), TrainerState(), TrainerControl()
    state.max_steps = 100
    for state.global_step in range(1, 10):
        for part in range(accumulation):
            bad = state.global_step >= 7 and part == accumulation - 1
            losses = torch.tensor([1.0, float("nan") if bad else 2.0], requires_grad=True)
            watch.note(losses, {"input_ids": torch.tensor([[state.global_step, part], [30, 31]])})
        if state.global_step < 9:
            watch.on_step_end(args, state, control)
    control.should_save = True
    named = f"the batch of '7 {accumulation - 1}', '30 31'"
    with pytest.raises(ModelError, match=f"the loss of step 7 is nan\n  where: {named}\n"):
        watch.on_step_end(args, state, control)


def test_losses_are_read_now_and_then() -> None:
    """Before an evaluation, every ten steps, and never twice."""
    watch = callbacks.WatchLoss(evaluation_steps=4, tokenizer=Words())
    args, state, control = SimpleNamespace(gradient_accumulation_steps=1), TrainerState(), TrainerControl()
    state.max_steps, left = 100, []
    for state.global_step in range(1, 13):
        watch.note(torch.ones(2), {"input_ids": torch.tensor([[1], [2]])})
        watch.on_step_end(args, state, control)
        left.append(len(watch.seen))
    assert left == [1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 1, 0]
